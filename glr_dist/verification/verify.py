"""`verify`: what an estimate relies on, checked one by one on a few examples of the real batch and the real loss.

Shapes: n examples, C copies of them, z [n, *S] the logits of a site, v = z + σ ε.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from glr_dist.errors import SiteError, UserError
from glr_dist.estimators import Step
from glr_dist.estimators.unit_wise import Moves, after_next, next_linear, noisy_logits
from glr_dist.losses import per_example
from glr_dist.rules import any_segment
from glr_dist.sites import Site, Tape
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import cloned, equal, taken
from glr_dist.verification.culprit import Call, close, culprit, rounding, traced
from glr_dist.verification.jumps import hidden_jump, reaches_around

EXAMPLES = 3
_MOVED = 8  # units that are moved
_DRAWS = 3  # a unit may flip by rounding, but not in each of several draws of the noise

Noise = Callable[[Site, Tensor], Tensor]


def verify(step: Step) -> None:
    """Checks on the first examples of the step's batch that its estimate can be trusted.

    - The chain without noise returns what the model returns.
    - A pass changes no buffer, and the same pass gives the same outputs again.
    - The outputs and the loss of an example do not depend on the other examples.
    - Replaying each site with its recorded logits gives the recorded outputs, whatever the other copies are.
    - Where a unit moves by itself, a column of the next layer's weights gives the logits that a replay gives.
    - A layer's rule gives the gradient of autograd inside its segment.
    - No parameter acts on the logits through a jump, which autograd does not see.

    Raises:
        SiteError: one of these fails; it names the module and what to do.
        UserError: the loss of an example depends on the other examples.
    """
    index = torch.arange(EXAMPLES) % step.size
    few = replace(step, x=taken(step.x, index), y=taken(step.y, index), replica=(0, 1))
    uniforms = few.uniforms(0, 0)
    with rounding(few.network.model, lambda: few.network.record(few.x, _noise(few, 0, 1), uniforms)):
        _check_state(few)
        for draw in range(_DRAWS):
            try:
                _check_passes(few, draw)
                break
            except UserError:
                if draw == _DRAWS - 1:
                    raise
        if step.options.name != "pathwise":
            _check_gradients(few)


# ---------------------------------------------------------------- the passes


def _check_state(step: Step) -> None:
    """Refuses a network whose passes differ, or leave another network behind."""
    network, model = step.network, step.network.model
    noisy = _noise(step, 0, 1)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = cloned(step.x)

    def outputs() -> Tensor:
        return network.record(step.x, noisy, step.uniforms(0, 0))[0]

    before = outputs()
    for name, value in buffers.items():
        buffer = model.get_buffer(name)
        if not close(buffer, value):
            buffer.copy_(value)
            owner = name.rpartition(".")[0]
            raise SiteError(
                f"{_named(model, owner)} changes its buffer '{name}' in a pass, so that redraws would change the "
                "network: put it in evaluation mode, or reset the buffer at the start of each forward pass"
            )
    if not equal(step.x, x):
        raise SiteError("the network changes its input in place: let it work on a copy, x = x.clone()")
    if not close(outputs(), before):
        with traced(model) as first:
            outputs()
        with traced(model) as second:
            outputs()
        raise SiteError(
            f"{_culprit(step, first, second, slice(None))} returns different outputs for equal inputs: it keeps state "
            "between passes, or draws random numbers of its own; reset the state at the start of each forward pass, "
            "and draw random numbers in a keyed module such as glr_dist.nn.Dropout"
        )


def _check_passes(step: Step, draw: int) -> None:
    """Refuses a chain that is not the model, coupled examples, and replays that differ from the recorded pass."""
    network, n = step.network, step.size
    uniforms = step.uniforms(0, 0)
    chained = network.run(step.x, lambda name, _, z: z, uniforms)
    whole = network.whole(step.x, uniforms)
    if not close(chained, whole):
        raise SiteError(
            f"{type(network.model).__name__}.chain() is another network than forward(): their outputs differ by "
            f"{(chained - whole).abs().max().item():.3g} without noise; let forward() call the blocks of chain() in "
            "their order"
        )
    noisy = _noise(step, draw, 1)
    outputs, tape = network.record(step.x, noisy, uniforms)
    losses = per_example(step.loss(outputs, step.y), n)
    for kept in (0, n - 1):
        _check_apart(step, draw, kept, outputs, losses, tape.statistics)
    if step.noise is None or step.options.name == "pathwise":
        return
    copies = 2
    noisy = _noise(step, draw, copies)  # the first copy as recorded, the second with noise of its own
    for site in network.sites:
        z = tape.logits[site.name]
        v = noisy(site, z.repeat(copies, *[1] * (z.dim() - 1)))
        try:
            replayed = network.replay(site, tape, v, noisy, uniforms)
        except UserError:
            raise
        except Exception as error:
            raise SiteError(
                f"site '{site.name}': the network fails on {copies * n} examples, {copies} copies of {n} "
                f"({type(error).__name__}: {error}): it must accept any number of examples, and each "
                "block of its chain must depend on its input alone"
            ) from error
        if len(replayed) != len(v) or not close(replayed[:n], outputs):
            raise SiteError(
                f"site '{site.name}': replaying the recorded logits does not give the recorded outputs; a value passes "
                "by the chain's blocks, or the network depends on the number of examples: let each block depend on "
                "its input alone"
            )
        _check_moves(step, site, tape, v[:n])


def _check_moves(step: Step, site: Site, tape: Tape, v: Tensor) -> None:
    """Refuses a network in which a unit that moves reaches the next site's logits in another way than by a column."""
    network, linear = step.network, next_linear(step.network, site)
    if site.name not in step.unit_wise or linear is None:
        return
    units = slice(0, min(_MOVED, site.units))
    moves = Moves(units, torch.stack([v[:, units].T + 1, v[:, units].T - 1], 1), torch.empty(0))
    seen: list[Tensor] = []

    def visit(name: str, _: Tensor, z: Tensor) -> Tensor:
        seen.append(z)
        return z

    replayed = noisy_logits(v, moves).view(-1, *site.shape)
    network.run(replayed, visit, None, site.block + 1, linear.site.block + 1, statistics=tape.statistics)
    if not close(after_next(linear, tape.logits[linear.site.name], v, moves), seen[-1]):
        raise SiteError(
            f"estimator.redraw: {step.unit_wise[site.name].name!r} at '{site.name}': when one unit moves, the logits "
            f"of '{linear.site.name}' do not change by a column of its weights: its forward, or that of the module "
            "before it, is not that of its class; use 'copies' there"
        )


def _check_apart(
    step: Step, draw: int, kept: int, outputs: Tensor, losses: Tensor, statistics: dict[str, Tensor]
) -> None:
    """Refuses a network or a loss whose value for the example `kept` changes with the other examples."""
    network, n = step.network, step.size
    uniforms = step.uniforms(0, 0)
    index = torch.full((n,), kept)
    x, y = taken(step.x, index), taken(step.y, index)
    shared, other = _noise(step, draw, 1), _noise(step, draw + _DRAWS, 1)

    def noisy(site: Site, z: Tensor) -> Tensor:
        v = other(site, z)
        v[kept] = shared(site, z)[kept]
        return v

    changed, _ = network.record(x, noisy, uniforms, statistics=statistics)
    if not close(changed[kept], outputs[kept]):
        with traced(network.model) as first:
            network.record(step.x, shared, uniforms, statistics=statistics)
        with traced(network.model) as second:
            network.record(x, noisy, uniforms, statistics=statistics)
        raise SiteError(
            f"{_culprit(step, first, second, kept)} couples the examples of a batch: the output for one depends on "
            "the others; use a module that treats each example alone, such as LayerNorm or GroupNorm"
        )
    if not close(per_example(step.loss(changed, y), n)[kept], losses[kept]):
        raise UserError(
            "loss: the loss of an example depends on the other examples of the batch; a redraw changes one example at "
            "a time, so return a loss that each example has alone"
        )


# ---------------------------------------------------------------- the gradients


def _check_gradients(step: Step) -> None:
    """Refuses a segment whose parameter gradients are not those of autograd, or not those of finite differences."""
    network, uniforms = step.network, step.uniforms(0, 0)
    noisy = _noise(step, 0, 1)
    v: dict[str, Tensor] = {}

    def kept(site: Site, z: Tensor) -> Tensor:
        v[site.name] = noisy(site, z)
        return v[site.name].clone()

    _, tape = network.record(step.x, kept, uniforms, keep=range(len(network.blocks)))
    for site in network.sites:
        if site.name in step.rules and site.owned:
            _check_rule(step, site, tape, noisy)
    if (around := reaches_around(step, step.x, v, tape.statistics)) is not None:
        raise SiteError(
            f"no site owns all of the parameter '{around}': it reaches the loss around the sites through a jump, such "
            "as sign or round; choose the sites so that its layer is one, or freeze it"
        )
    if (jump := hidden_jump(step, step.x, v, tape.statistics)) is not None:
        site, parameter, change, integral = jump
        owner = parameter.rpartition(".")[0]
        module = network.model.get_submodule(owner)
        if site.module in module.modules():  # whose noise comes after the jump
            remedy = (
                "freeze it, or accept the gradient of autograd, such as a straight-through one, with verify=False (in "
                "a configuration, training.verify: false)"
            )
        else:
            kind = type(module).__name__
            remedy = f"make its module {_named(network.model, owner)} a site too, sites=[…, {kind}], or freeze it"
        raise SiteError(
            f"the parameter '{parameter}' acts on the logits of site '{site.name}' through a jump, such as sign or "
            f"round (they change by {change:.2g}, of which its derivative explains {integral:.2g}): {remedy}"
        )


def _check_rule(step: Step, site: Site, tape: Tape, noisy: Noise) -> None:
    delta = _draw(step, site, tuple(tape.logits[site.name].shape), 0, Role.VERIFICATION)
    uniforms = step.uniforms(0, 0)
    expected = any_segment(step.network, site, tape, delta, noisy, uniforms)
    for name, grad in step.rules[site.name](tape.inputs[site.name], delta).items():
        if not close(grad, expected[name]):
            raise SiteError(
                f"site '{site.name}': the rule for {type(site.module).__name__} gives another gradient of '{name}' "
                "than autograd; give the layer a class of its own (a subclass), which autograd differentiates"
            )


# ---------------------------------------------------------------- helpers


def _draw(step: Step, site: Site, shape: tuple[int, ...], draw: int, role: Role) -> Tensor:
    key = Key(step.seed, draw, 0, site.index, 0, 0, role)
    return torch.randn(shape, generator=generator(key, step.device), dtype=step.network.dtype, device=step.device)


def _noise(step: Step, draw: int, copies: int) -> Noise:
    """Returns (site, z) -> v for C copies of the examples; the first copy's noise is that of a single copy."""

    def noisy(site: Site, z: Tensor) -> Tensor:
        if step.noise is None:
            return z
        n = len(z) // copies
        drawn = []
        for copy in range(copies):
            key = Key(step.seed, draw, copy, site.index, role=Role.VERIFICATION)
            shape = (n, *site.shape)
            drawn.append(step.noise.sample(shape, generator(key, z.device), step.network.dtype))
        return z + step.scales[site.name] * torch.cat(drawn)

    return noisy


def _culprit(step: Step, first: list[Call], second: list[Call], kept: int | slice) -> str:
    n = step.size

    def part(tensor: Tensor) -> Tensor:
        return tensor[kept] if tensor.dim() and len(tensor) == n else tensor

    model = step.network.model
    return culprit(model, first, second, part) or f"the network ({type(model).__name__})"


def _named(model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return f"'{name}' ({kind})" if name else f"the network ({kind})"
