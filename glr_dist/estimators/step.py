"""What the estimators share: one step's data, work items, and the partial sums that they return.

Shapes: K copies, R directions of a block (pairs when antithetic), S signs (2 when antithetic, else 1), n examples of
an example block, N examples of the batch, *S the shape of a site's logits, D their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from glr_dist.checks import all_finite
from glr_dist.config import Estimator as Options
from glr_dist.errors import NoGradientError
from glr_dist.estimators.samplers import SAMPLERS, DirectionBlock
from glr_dist.losses import Loss, per_example
from glr_dist.noise import Noise
from glr_dist.rules import any_segment
from glr_dist.sites import Network, Site, Tape
from glr_dist.streams import Key, Role, generator

K = TypeVar("K")


class WorkItem(NamedTuple):
    """One piece of work: it can be computed anywhere, in any order, and always in the same shapes.

    `site` is None when the item serves all sites at once. It redraws `directions` one block
    at a time; the tuple is empty where nothing is redrawn.
    """

    shared_pass: int
    example_block: int
    site: str | None = None
    directions: tuple[DirectionBlock, ...] = ()


@dataclass
class Gradients:
    """An estimate of the gradient of J, or a share of one.

    Attributes:
        grads: parameter name -> gradient.
        scales: site name -> gradient of log σ, where it is learned.
        loss: the mean loss of the step's noisy passes, a scalar.
    """

    grads: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, share: Gradients) -> None:
        """Adds another share."""
        for name, value in share.grads.items():
            accumulate(self.grads, name, value)
        for name, value in share.scales.items():
            accumulate(self.scales, name, value)
        self.loss = self.loss + share.loss


@dataclass
class Partial(Gradients):
    """What an item adds to the estimate: logit gradients or parameter gradients, scale gradients, and losses.

    Attributes:
        delta: site -> its share of δ / N [n, *S], where δ is smaller than the parameter gradients.
    """

    delta: dict[str, Tensor] = field(default_factory=dict)


def accumulate(totals: dict[K, Tensor], key: K, value: Tensor) -> None:
    """Adds in place, so that memory does not grow with the shares; autograd may give two parameters one tensor."""
    totals[key] = totals[key].add_(value) if key in totals else value.clone()


@dataclass(frozen=True)
class Step:
    """Everything that one estimate depends on.

    Attributes:
        network: the prepared network.
        noise: its law; None for a clean pass (`pathwise`).
        options: how to estimate.
        copies, passes: site -> its K and M.
        rules: site -> its direct rule, where it has one.
        scales: site -> σ, a scalar or [*S].
        log_scales: site -> log σ where it is learned.
        seed, number: the run's seed and the step's number, which key all noise.
        x, y, loss: inputs [N, …], targets [N, …], the per-example loss.
        replica: (rank, number): this estimate is one of a number, each of its own example blocks; they add up to one.
    """

    network: Network
    noise: Noise | None
    options: Options
    copies: Mapping[str, int]
    passes: Mapping[str, int]
    rules: Mapping[str, Callable[[Tensor, Tensor], dict[str, Tensor]]]
    scales: Mapping[str, Tensor]
    log_scales: Mapping[str, nn.Parameter]
    seed: int
    number: int
    x: Tensor
    y: Tensor
    loss: Loss
    replica: tuple[int, int] = (0, 1)

    # ------------------------------------------------------------ sizes

    @property
    def signs(self) -> int:
        """2 when every direction is used with both signs, else 1."""
        return 2 if self.options.antithetic else 1

    @property
    def example_blocks(self) -> range:
        """The example blocks of the batch (of this replica)."""
        rank, number = self.replica
        return range(rank, -(-len(self.x) // self.options.example_block), number)

    def examples_of(self, example_block: int) -> slice:
        """The examples of a block."""
        first = example_block * self.options.example_block
        return slice(first, min(first + self.options.example_block, len(self.x)))

    def learned(self) -> tuple[Site, ...]:
        """The sites that need an estimate: those that own a parameter or learn their scale."""
        return tuple(site for site in self.network.sites if site.owned or site.name in self.log_scales)

    # ------------------------------------------------------------ noise

    def key(self, shared_pass: int, site: int, example_block: int) -> Key:
        """The key of a stream, to be completed by its block and role."""
        return Key(self.seed, self.number, shared_pass, site, 0, example_block)

    def draw(self, site: Site, item: WorkItem, block: DirectionBlock, n: int) -> Tensor:
        """ε [R, n, *S] of a block of the item's directions at a site."""
        assert self.noise is not None
        sampler = SAMPLERS[self.options.sampler]
        key = self.key(item.shared_pass, site.index, item.example_block)
        eps = sampler(self.noise, key, block, n, site.units, self.network.dtype, self.x.device)
        return eps.view(*eps.shape[:2], *site.shape)

    def shared_eps(self, site: Site, shared_pass: int, example_block: int, n: int) -> Tensor:
        """ε [n, *S] of a shared pass."""
        assert self.noise is not None
        stream = generator(self.key(shared_pass, site.index, example_block), self.x.device)
        return self.noise.sample((n, *site.shape), stream, self.network.dtype)

    def shared_noise(self, shared_pass: int, example_block: int) -> Callable[[Site, Tensor], Tensor]:
        """(site, z) -> v with the noise of a shared pass; z may hold any number of copies of the block [C·n, *S]."""
        n = len(self.y[self.examples_of(example_block)])

        def noisy(site: Site, z: Tensor) -> Tensor:
            added = self.shared_eps(site, shared_pass, example_block, n) * self.scales[site.name]
            return (z.view(-1, n, *site.shape) + added).view(z.shape)

        return noisy

    def uniforms(self, shared_pass: int, example_block: int, block: int = 0) -> Callable[[nn.Module, Tensor], Tensor]:
        """The keyed uniforms of random modules: one draw per example, repeated for its copies in a redraw."""
        n = len(self.y[self.examples_of(example_block)])

        def draw(module: nn.Module, x: Tensor) -> Tensor:
            key = self.key(shared_pass, self.network.random_index(module), example_block)
            stream = generator(key._replace(block=block, role=Role.DROPOUT), x.device)
            # With a block of its own a pass is drawn whole; redraws of a shared pass repeat that pass's draw.
            count = x.shape[0] if block else n
            drawn = torch.rand((count, *x.shape[1:]), generator=stream, device=x.device)
            return drawn.repeat(x.shape[0] // count, *[1] * (x.dim() - 1))

        return draw

    # ------------------------------------------------------------ passes

    def shared_tape(self, shared_pass: int, example_block: int, *, noisy: bool) -> Tape:
        """One pass of an example block, with or without noise, and its losses.

        Raises:
            FloatingPointError: a site's logits are not finite.
        """
        examples = self.examples_of(example_block)
        add = self.shared_noise(shared_pass, example_block) if noisy else unchanged
        outputs, tape = self.network.record(self.x[examples], add, self.uniforms(shared_pass, example_block))
        for name, z in tape.logits.items():
            if not all_finite(z):
                raise FloatingPointError(f"the logits of the site '{name}' are not finite at step {self.number}")
        tape.losses = per_example(self.loss(outputs, self.y[examples]), len(outputs))
        return tape

    def targets(self, example_block: int, copies: int) -> Tensor:
        """The targets of a block, repeated for each copy [C·n, …]."""
        y = self.y[self.examples_of(example_block)]
        return y.repeat(copies, *[1] * (y.dim() - 1))

    # ------------------------------------------------------------ gradients

    def keeps_delta(self, site: Site) -> bool:
        """Whether items return δ (it is the smaller one), decided by the configuration alone."""
        owned = sum(self.network.parameters[name].numel() for name in site.owned)
        return self.options.example_block * site.units <= owned

    def formed_by_items(self) -> set[str]:
        """The sites whose items return parameter gradients, not δ."""
        return {site.name for site in self.learned() if site.owned and not self.keeps_delta(site)}

    def parameter_gradients(
        self,
        site: Site,
        tape: Tape,
        delta: Tensor,
        noisy: Callable[[Site, Tensor], Tensor],
        uniforms: Callable[[nn.Module, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """(∂z/∂θ)ᵀ δ by parameter name: by the layer's own rule, or by `any_segment`."""
        rule = self.rules.get(site.name)
        if rule is None:
            return any_segment(self.network, site, tape, delta, noisy, uniforms)
        return rule(tape.inputs[site.name], delta)


def unchanged(site: Site, z: Tensor) -> Tensor:
    """What becomes of a site's logits in a noise-free pass."""
    return z


def head_gradient(v: Tensor, losses: Tensor, site: Site) -> Tensor:
    """The derivative of the losses at the last site's noisy logits v (`exact_head`), of the shape of v.

    Raises:
        NoGradientError: the losses have no gradient, or a zero one, there.
    """
    if losses.requires_grad:
        (slope,) = torch.autograd.grad(losses, v, torch.ones_like(losses), allow_unused=True)
        if slope is not None and slope.any():
            return slope
    raise NoGradientError(
        f"estimator.exact_head: the loss has no gradient at the logits of '{site.name}' (a discontinuous loss, or such "
        "an activation after it); turn exact_head off"
    )
