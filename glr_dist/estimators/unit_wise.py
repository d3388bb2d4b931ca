"""Unit-wise redraws: one unit of a site at a time takes other values, and all other noise is that of the shared pass.

Where elementwise units and a linear layer follow, a unit that moves changes the logits of that layer by a multiple of
one column of its weights, so that a replay begins there, and costs hardly any FLOPs.

Shapes: n examples, D units, F moves (a unit, and which of its values), S replays of a move, O logits of the next site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from glr_dist.estimators.drawn_examples import drawn_count
from glr_dist.estimators.head import EXPECTED
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.estimators.step import Pass, Step, WorkItem
from glr_dist.estimators.variance import blocks
from glr_dist.network import Network, Uniforms
from glr_dist.nn.activations import Heaviside, Sign, Staircase
from glr_dist.noise import Noise
from glr_dist.sites import Site, Tape
from glr_dist.streams import Key
from glr_dist.trees import Tree, copied

# Modules whose outputs are, each, a function of the input at the same place alone.
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU),
    *(nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink),
    *(nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold, Heaviside, Sign, Staircase),
)


class Moves(NamedTuple):
    """Moves of units, and the weights of their losses.

    Attributes:
        units: the unit of each move, [F] or a slice.
        values: noisy logits that the units take [F, S, n].
        by_z: coefficients of the losses in ∂J/∂z of the units [F, S, n]. With that of the loss in the
            shared pass, those of a unit add up to zero, so that this loss is a baseline.
        by_scale: those in ∂J/∂log σ; None where these are not estimated.
    """

    units: slice | Tensor
    values: Tensor
    by_z: Tensor
    by_scale: Tensor | None = None


class UnitWise(Protocol):
    """A way of redrawing unit by unit.

    Attributes:
        name: value of the option `redraw`.
        replays: S, replays of a move.
    """

    @property
    def name(self) -> str: ...

    @property
    def replays(self) -> int: ...

    def move_count(self, site: Site) -> int:
        """Returns F, the number of moves of a site."""
        ...

    def draw(
        self, noise: Noise, key: Key, block: DirectionBlock, n: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """Draws the random numbers of a block of moves; None if it needs none."""
        ...

    def moves(
        self, noise: Noise, z: Tensor, v: Tensor, scale: Tensor, block: DirectionBlock, drawn: Tensor | None
    ) -> Moves:
        """Returns a block of moves.

        Args:
            noise: the law.
            z: logits [n, D].
            v: noisy logits of the shared pass [n, D].
            scale: σ, a scalar or [D].
            block: numbers of the moves.
            drawn: their random numbers.
        """
        ...


class NextLinear(NamedTuple):
    """The linear layer that follows a site: each of the site's units reaches its logits by one column of weights.

    Attributes:
        units: the elementwise module.
        site: the next site, a linear layer.
    """

    units: nn.Module
    site: Site


def next_linear(network: Network, site: Site) -> NextLinear | None:
    """Returns the elementwise module and the linear layer that follow a site; None if other modules do."""
    following = network.blocks[site.block + 1 : site.block + 3]
    if not site.top or len(site.shape) != 1 or len(following) < 2 or site.index + 1 >= len(network.sites):
        return None
    (_, units), (name, linear), after = *following, network.sites[site.index + 1]
    plain = type(units) in ELEMENTWISE and not units._forward_hooks and not units._forward_pre_hooks
    direct = type(linear) is nn.Linear and linear is after.module and after.top and name not in network.altered
    own = any("forward" in vars(module) for module in (units, linear))  # a method that replaces the class's
    return NextLinear(units, after) if plain and direct and not own and after.block == site.block + 2 else None


def move_cost(network: Network, site: Site) -> float:
    """FLOPs of a replay of one move, as a share of the network's."""
    linear = next_linear(network, site)
    return site.suffix if linear is None else linear.site.suffix + 2 * linear.site.units / network.flops


def widest(network: Network, site: Site) -> int:
    """Returns the maximum number of elements per example of one tensor in a replay of one move."""
    linear = next_linear(network, site)
    return max(site.width, site.units) if linear is None else max(linear.site.width, linear.site.units)


def draw_block(step: Step, item: WorkItem, block: DirectionBlock, site: Site, n: int) -> Tensor | None:
    """Draws the random numbers of a block of moves; None if it needs none."""
    key = step.key(item.shared_pass, site.index, item.example_block)
    way, noise = step.unit_wise[site.name], step.noise_at(site)
    return way.draw(noise, key, block, n, step.network.dtype, step.device)


def unit_wise_shares(
    step: Step,
    site: Site,
    tape: Tape,
    block: DirectionBlock,
    drawn: Tensor | None,
    targets: Tree,
    noisy: Callable[[Site, Tensor], Tensor],
    uniforms: Uniforms,
    share: float | Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Returns the shares of a block of moves in δ / N [n, *S] and, if σ is learned, in the gradient of log σ.

    Args:
        step: the step.
        site: the site.
        tape: the shared pass.
        block: numbers of the moves.
        drawn: their random numbers.
        targets: those of the example block, a tree of tensors [n, …].
        noisy: (site, z) -> v, which adds the noise of the shared pass.
        uniforms: the random numbers of keyed modules in the shared pass.
        share: weight of one loss in J.
    """
    z, scale = tape.logits[site.name], step.scales[site.name]
    v, flat = noisy(site, z).flatten(1), z.flatten(1)
    sigma = scale.flatten() if scale.dim() else scale
    moves = step.unit_wise[site.name].moves(step.noise_at(site), flat, v, sigma, block, drawn)
    passing, linear = Pass(step, noisy, tape.u), next_linear(step.network, site)
    if linear is None:
        start, replayed = site, noisy_logits(v, moves).view(-1, *site.shape)
    else:
        start = linear.site
        after = noisy(start, tape.logits[start.name])
        logits = after_next(linear, after, v, moves)
        # The head `expected` recognises its logits in any shape, if they are contiguous.
        replayed = passing.reached(start, logits.contiguous() if step.head.kind == EXPECTED else logits)
    outputs = step.network.replay(start, tape, replayed, passing.visit, uniforms)
    losses = passing.losses(outputs, copied(targets, len(replayed) // len(z))).view(moves.values.shape)
    weights = tape.weighted(losses - tape.losses) * share
    delta = _by_unit((weights * moves.by_z).sum(1), moves.units, flat.shape[1]).T.contiguous().view(z.shape)
    if site.name not in step.log_scales or moves.by_scale is None:
        return delta, None
    units = _by_unit((weights * moves.by_scale).sum((1, 2)), moves.units, flat.shape[1])
    return delta, units.view(site.shape) if scale.dim() else units.sum()


def after_next(linear: NextLinear, after: Tensor, v: Tensor, moves: Moves) -> Tensor:
    """Returns the next site's noisy logits after each move [F·S·n, O].

    Args:
        linear: the next linear layer.
        after: noisy logits of the next site in the shared pass [n, O].
        v: noisy logits of the site in the shared pass [n, D].
        moves: the moves.
    """
    change = linear.units(moves.values) - linear.units(v).T[moves.units][:, None]
    layer = linear.site.module
    assert isinstance(layer, nn.Linear)
    weights = layer.weight.T[moves.units]
    replays = moves.values.shape[1]
    outputs_first = after.T.repeat(1, replays) + change.flatten(1)[:, None] * weights[..., None]  # [F, O, S·n]
    result: Tensor = outputs_first.transpose(1, 2).flatten(0, 1)
    return result


def noisy_logits(v: Tensor, moves: Moves) -> Tensor:
    """Returns the site's noisy logits after each move [F, S, n, D], from those of the shared pass [n, D]."""
    number, replays, n = moves.values.shape
    copies = v.expand(number, replays, *v.shape).clone()
    units = torch.arange(v.shape[1], device=v.device)[moves.units]
    return copies.scatter_(3, units[:, None, None, None].expand(-1, replays, n, 1), moves.values[..., None])


def _by_unit(weights: Tensor, units: slice | Tensor, number: int) -> Tensor:
    """Returns the sums [D, …] of the weights of moves [F, …], by unit."""
    if isinstance(units, slice):
        before, after = (weights.new_zeros(k, *weights.shape[1:]) for k in (units.start, number - units.stop))
        return torch.cat([before, weights, after])
    return weights.new_zeros(number, *weights.shape[1:]).index_add_(0, units, weights)


def cut_moves(step: Step, site: Site) -> tuple[DirectionBlock, ...]:
    """Cuts the moves of a site into blocks that keep to the limit on elements."""
    way = step.unit_wise[site.name]
    examples = drawn_count(step, site, step.options.example_block)
    limit = step.block_elements // (way.replays * examples * widest(step.network, site))
    return blocks(way.move_count(site), None, limit, 1)


def replay_count(ways: Mapping[str, UnitWise], site: Site) -> int:
    """Returns K of a site that is redrawn unit by unit: the replays of all of its moves."""
    way = ways[site.name]
    return way.replays * way.move_count(site)
