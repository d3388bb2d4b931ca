"""One step: its data and noise, its work items, and the partial sums that they return.

Shapes: K copies, R directions of a block (pairs when antithetic), S signs (2 when antithetic, else 1), n examples of
an example block, N examples of the batch, *S the shape of a site's logits, D their number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from glr_dist.checks import all_finite
from glr_dist.config import Estimator as Options
from glr_dist.estimators.column_space import ColumnSpace
from glr_dist.estimators.feedback import OUTPUTS, FeedbackMap, errors_of
from glr_dist.estimators.head import DERIVATIVE, EXPECTED, SAMPLED_HEAD, Head, LastLogits, expected_losses
from glr_dist.estimators.samplers import SAMPLERS, DirectionBlock
from glr_dist.losses import Loss, per_example
from glr_dist.network import Network, Uniforms
from glr_dist.noise import Noise
from glr_dist.rules import any_segment
from glr_dist.sites import Site, Tape
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import Tree, copied, count, form, leaves, taken

if TYPE_CHECKING:
    from glr_dist.estimators.compiled_step import CompiledStep
    from glr_dist.estimators.unit_wise import UnitWise

K = TypeVar("K")

_BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}  # what the caches of a core hold; enough to keep a GPU busy


class WorkItem(NamedTuple):
    """A piece of work that can be computed anywhere, in any order, and always in the same shapes.

    `site` is None when the item serves all sites at once. It redraws `directions` one block
    at a time; the tuple is empty where nothing is redrawn.
    """

    shared_pass: int
    example_block: int
    site: str | None = None
    directions: tuple[DirectionBlock, ...] = ()


_ZERO = torch.zeros(())  # the loss of all shares without one; never written


@dataclass
class Gradients:
    """An estimate of the gradient of J, or a share of an estimate.

    Attributes:
        grads: parameter name -> gradient.
        scales: site name -> gradient of log σ, if σ is learned.
        loss: mean loss of the step's noisy passes, a scalar.
        statistics: means over the passes of the statistics of batch norms, [3, C] by call.
        moments: those that the maps of a learned feedback are fitted by (`Feedback.update`).
    """

    grads: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    loss: Tensor = field(default_factory=lambda: _ZERO)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)

    def add(self, share: Gradients, *, own: bool = False) -> None:
        """Adds another share; with `own`, nobody else uses its gradients, and the first ones are not copied."""
        for name, value in share.grads.items():
            if own and name not in self.grads:
                self.grads[name] = value
            else:
                accumulate(self.grads, name, value)
        for name, value in share.scales.items():
            accumulate(self.scales, name, value)
        for name, value in share.statistics.items():
            accumulate(self.statistics, name, value)
        for name, value in share.moments.items():
            accumulate(self.moments, name, value)
        if share.loss is not _ZERO:
            self.loss = self.loss + share.loss


@dataclass
class Partial(Gradients):
    """An item's share of the estimate: logit or parameter gradients, scale gradients, and losses.

    Attributes:
        delta: site -> its share of δ / N [n, *S], if δ is smaller than the parameter gradients.
    """

    delta: dict[str, Tensor] = field(default_factory=dict)


def accumulate(totals: dict[K, Tensor], key: K, value: Tensor) -> None:
    """Adds a value to a total, in place: memory must not grow with the number of shares.

    The first value is copied, since the caller may still use it.
    """
    totals[key] = totals[key].add_(value) if key in totals else value.clone()


@dataclass(frozen=True)
class Step:
    """Everything that one estimate depends on.

    Attributes:
        network: the prepared network.
        noise: its law; None for a clean pass (`pathwise`).
        options: the estimator's options.
        copies, passes: site -> its K and M.
        rules: site -> its direct rule, for the sites that have one.
        scales: site -> σ, a scalar or [*S].
        log_scales: site -> log σ, for the sites where it is learned.
        seed, number: the run's seed and the step's number, which key all noise.
        unit_wise: site -> its way of redrawing, for the sites that are redrawn unit by unit.
        levels: site -> the thresholds of the units behind it, for the sites whose scores are averaged given the levels
            of these units.
        spaces: site -> the column spaces of its inputs, for the sites that redraw only the noise inside them.
        feedback: site -> the map from the output error to δ, for the sites that use one.
        head: how the noise of the last site enters.
        compiled: the compiled shared passes and redraws, which take the place of the eager ones; None without them.
        x, y, loss: inputs and targets, trees of tensors [N, …], and the per-example loss.
        replica: (rank, world size); each replica estimates from its own example blocks, and their sum is the estimate.
        rows: numbers of the examples of one block, for the redraws of a part of it; the step is then valid for that
            block alone. None for all of them.
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
    x: Tree
    y: Tree
    loss: Loss
    unit_wise: Mapping[str, UnitWise] = field(default_factory=dict)
    levels: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    spaces: Mapping[str, ColumnSpace] = field(default_factory=dict)
    feedback: Mapping[str, FeedbackMap] = field(default_factory=dict)
    head: Head = SAMPLED_HEAD
    compiled: CompiledStep | None = None
    replica: tuple[int, int] = (0, 1)
    rows: Tensor | None = None

    # ------------------------------------------------------------ sizes

    @property
    def signs(self) -> int:
        """Number of signs that each direction is used with: 2 for antithetic pairs, else 1."""
        return 2 if self.options.antithetic else 1

    @cached_property
    def size(self) -> int:
        """Number of examples of the batch, N."""
        return count(self.x, "x")

    @cached_property
    def form(self) -> tuple[Hashable, Hashable]:
        """The forms of the inputs and of the targets (`trees.form`): one compiled function serves one of each."""
        return form(self.x), form(self.y)

    @cached_property
    def device(self) -> torch.device:
        """The device that holds the batch."""
        return leaves(self.x)[0].device

    @property
    def block_elements(self) -> int:
        """Maximum number of elements of one tensor of a work item."""
        chosen = self.options.block_elements
        return _BLOCK_ELEMENTS.get(self.device.type, _BLOCK_ELEMENTS["cpu"]) if chosen == "auto" else chosen

    @property
    def example_blocks(self) -> range:
        """Numbers of the example blocks that this replica estimates from."""
        rank, number = self.replica
        return self.all_example_blocks[rank::number]

    @property
    def all_example_blocks(self) -> range:
        """Numbers of the example blocks of all replicas."""
        return range(-(-self.size // self.options.example_block))

    def examples_of(self, example_block: int) -> slice:
        """Returns the examples of a block as a slice of the batch."""
        first = example_block * self.options.example_block
        return slice(first, min(first + self.options.example_block, self.size))

    def examples_in(self, example_block: int) -> int:
        """Returns n, the number of examples in a block; the last one may be shorter."""
        examples = self.examples_of(example_block)
        count: int = examples.stop - examples.start
        return count

    def chosen(self, values: Tree) -> Tree:
        """Returns the examples that are redrawn, from those of their block."""
        return values if self.rows is None else taken(values, self.rows)

    def learned(self) -> tuple[Site, ...]:
        """Returns the sites that need an estimate: they own a parameter or learn their scale."""
        return tuple(site for site in self.network.sites if site.owned or site.name in self.log_scales)

    def redrawn(self, site: Site) -> int:
        """Returns the number of dimensions of an example's noise that a redraw of the site varies."""
        return self.spaces[site.name].units if site.name in self.spaces else site.units

    def framed(self, site: Site) -> bool:
        """True if the directions of the site are rows of orthogonal frames; a derivative gains nothing by them."""
        return self.options.sampler == "orthogonal" and not self.differentiated(site)

    def integrated(self, site: Site) -> bool:
        """True if δ of the site is the derivative of the expected loss, without a draw."""
        return self.head.kind == EXPECTED and self.is_last(site)

    def differentiated(self, site: Site) -> bool:
        """True if δ of the site is the derivative of the loss at its noisy logits."""
        return self.head.kind == DERIVATIVE and self.is_last(site)

    def is_last(self, site: Site) -> bool:
        """True for the last site of a pass."""
        return site.index == len(self.network.sites) - 1

    # ------------------------------------------------------------ noise

    def noise_at(self, site: Site) -> Noise:
        """Returns the noise of a site."""
        assert self.noise is not None
        return self.noise

    def key(self, shared_pass: int, site: int, example_block: int) -> Key:
        """Returns the key of a stream; the caller adds the block and the role."""
        return Key(self.seed, self.number, shared_pass, site, 0, example_block)

    def draw(self, site: Site, item: WorkItem, block: DirectionBlock, n: int) -> Tensor:
        """Draws ε [R, n, *S] of one block of the item's directions at a site, or coefficients c of a column space."""
        name = self.options.sampler
        sampler = SAMPLERS["iid" if name == "orthogonal" and not self.framed(site) else name]
        key = self.key(item.shared_pass, site.index, item.example_block)
        eps = sampler(self.noise_at(site), key, block, n, self.redrawn(site), self.network.dtype, self.device)
        return eps if site.name in self.spaces else eps.view(*eps.shape[:2], *site.shape)

    def shared_eps(self, site: Site, shared_pass: int, example_block: int) -> Tensor:
        """Draws ε [n, *S] of a shared pass."""
        stream = generator(self.key(shared_pass, site.index, example_block), self.device)
        shape = self.examples_in(example_block), *site.shape
        eps: Tensor = self.chosen(self.noise_at(site).sample(shape, stream, self.network.dtype))
        return eps

    def shared_u(self, shared_pass: int, example_block: int) -> Tensor:
        """Draws the random numbers of the head's estimates of expectations, uniform in [0, 1) [n]; [0] without such."""
        if self.head.estimate is None:
            return torch.empty(0, dtype=self.network.dtype, device=self.device)
        n, dtype = self.examples_in(example_block), self.network.dtype
        key = self.key(shared_pass, len(self.network.sites) - 1, example_block)._replace(role=Role.QUADRATURE)
        return torch.rand(n, generator=generator(key, self.device), dtype=dtype, device=self.device)

    def shared_noise(self, shared_pass: int, example_block: int) -> Callable[[Site, Tensor], Tensor]:
        """Returns (site, z) -> v, which adds the noise of a shared pass; z holds C copies of the block [C·n, *S]."""
        return self.adding(lambda site: self.shared_shift(site, shared_pass, example_block))

    def shared_shift(self, site: Site, shared_pass: int, example_block: int) -> Tensor:
        """Draws σ ε [n, *S] of a shared pass."""
        return self.shared_eps(site, shared_pass, example_block) * self.scales[site.name]

    def adding(self, shift: Callable[[Site], Tensor]) -> Callable[[Site, Tensor], Tensor]:
        """Returns (site, z) -> v, which adds the σ ε [n, *S] that `shift` returns for a site.

        The last site has none if the loss's expectation takes its place.
        """

        def noisy(site: Site, z: Tensor) -> Tensor:
            if self.integrated(site):
                return z
            added = shift(site)
            return (z.view(-1, *added.shape) + added).view(z.shape)

        return noisy

    def uniforms(self, shared_pass: int, example_block: int, block: int = 0) -> Uniforms:
        """Returns the keyed uniforms of random modules: one draw per example, repeated for its copies in a redraw.

        Each call of a random module has a stream of its own.
        """
        n = self.examples_in(example_block)

        def draw(number: int, x: Tensor) -> Tensor:
            key = self.key(shared_pass, number, example_block)
            stream = generator(key._replace(block=block, role=Role.DROPOUT), x.device)
            # A pass with a block number draws for all its copies; redraws of a shared pass repeat that pass's draw.
            drawn = torch.rand((x.shape[0] if block else n, *x.shape[1:]), generator=stream, device=x.device)
            drawn = drawn if block else self.chosen(drawn)
            return drawn.repeat(x.shape[0] // len(drawn), *[1] * (x.dim() - 1))

        return draw

    # ------------------------------------------------------------ passes

    def shared_tape(self, shared_pass: int, example_block: int, *, noisy: bool) -> Tape:
        """Runs one pass of an example block, with or without noise, and records its losses.

        Raises:
            FloatingPointError: a site's logits are not finite.
            SiteError: the head is `expected`, and the outputs are not the logits of the last site.
        """
        if self.compiled is not None and self.compiled.has_pass(self, example_block):
            return self.compiled.tape(self, shared_pass, example_block, noisy=noisy)
        x, targets = (taken(tree, self.examples_of(example_block)) for tree in (self.x, self.y))
        u = self.shared_u(shared_pass, example_block) if noisy else torch.empty(0)
        passing = Pass(self, self.shared_noise(shared_pass, example_block) if noisy else unchanged, u)
        outputs, tape = self.network.record(x, passing.visit, self.uniforms(shared_pass, example_block))
        self.check_logits(tape)
        tape.losses, tape.u = passing.losses(outputs, targets), u
        if self.feedback:
            tape.errors = self._errors(passing, outputs, targets)
        return tape

    def check_logits(self, tape: Tape) -> None:
        """Refuses logits that are not finite.

        Raises:
            FloatingPointError: names the site.
        """
        for name, z in tape.logits.items():
            if not all_finite(z):
                raise FloatingPointError(f"the logits of the site '{name}' are not finite at step {self.number}")

    def _errors(self, passing: Pass, outputs: Tensor, targets: Tree) -> Tensor:
        """Returns the derivatives of a shared pass's losses by its outputs [n, E]."""
        outputs = outputs.detach().requires_grad_()
        with torch.enable_grad():
            return errors_of(passing.losses(outputs, targets), outputs)

    def error_moment(self, tape: Tape, passes: int) -> dict[str, Tensor]:
        """Returns a shared pass's share of the moments of the output error."""
        return {OUTPUTS: tape.errors.T @ tape.errors / (self.size * passes)} if self.feedback else {}

    def targets(self, example_block: int, copies: int) -> Tree:
        """Returns the targets of a block, repeated for each copy [C·n, …]."""
        return copied(self.chosen(taken(self.y, self.examples_of(example_block))), copies)

    # ------------------------------------------------------------ gradients

    def keeps_delta(self, site: Site) -> bool:
        """True if items return δ, which is then smaller than the parameter gradients; decided by the config alone."""
        owned = sum(self.network.parameters[name].numel() for name in site.owned)
        return self.options.example_block * site.units <= owned

    def formed_by_items(self) -> set[str]:
        """Returns the sites whose items return parameter gradients, not δ."""
        return {site.name for site in self.learned() if site.owned and not self.keeps_delta(site)}

    def parameter_gradients(
        self,
        site: Site,
        tape: Tape,
        delta: Tensor,
        noisy: Callable[[Site, Tensor], Tensor],
        uniforms: Uniforms,
    ) -> dict[str, Tensor]:
        """Returns (∂z/∂θ)ᵀ δ by parameter name, from the layer's own rule or from `any_segment`."""
        rule = self.rules.get(site.name)
        if rule is None:
            return any_segment(self.network, site, tape, delta, noisy, uniforms)
        return rule(tape.inputs[site.name], delta)


class Pass:
    """The losses of a pass, or their expectations over the noise of the last site where the head is `expected`.

    Args:
        step: the step.
        noisy: (site, z) -> v; where the head is `expected`, it leaves the last site's logits as they are.
        u: random numbers of the shared pass for the head's estimates of expectations [n], or [0].
    """

    def __init__(self, step: Step, noisy: Callable[[Site, Tensor], Tensor], u: Tensor) -> None:
        self._step, self._noisy, self._u = step, noisy, u
        self._integrated = step.head.kind == EXPECTED and noisy is not unchanged  # `unchanged`: no site has noise
        self._last: LastLogits | None = None

    def visit(self, site: Site, z: Tensor) -> Tensor:
        """Returns the noisy logits of a site."""
        return self.reached(site, self._noisy(site, z))

    def reached(self, site: Site, v: Tensor) -> Tensor:
        """Notes the noisy logits of a site, and returns them; the pass continues with them."""
        if self._integrated and self._step.is_last(site):
            self._last = LastLogits(v)
        return v

    def losses(self, outputs: Tensor, targets: Tree) -> Tensor:
        """Returns the losses [B], or their expectations.

        Raises:
            SiteError: the outputs are not the logits of the last site.
        """
        if self._integrated:
            assert self._last is not None
            return expected_losses(self._step, outputs, targets, self._last, self._u)
        return per_example(self._step.loss(outputs, targets), len(outputs))


def unchanged(site: Site, z: Tensor) -> Tensor:
    """Returns the logits unchanged (noise-free pass)."""
    return z


class Scores(NamedTuple):
    """Scores of draws: s(ε) and, if σ is learned, ε s(ε) - 1 [..., *S]; or other values with the same expectations.

    Attributes:
        by_z: s(ε), without `factor`.
        by_scale: ε s(ε) - 1; None if σ is not learned.
        factor: what s(ε) has in common in all draws of an example [n, *S]; None if nothing.
    """

    by_z: Tensor
    by_scale: Tensor | None
    factor: Tensor | None = None

    @classmethod
    def of(cls, noise: Noise, eps: Tensor, *, learned: bool) -> Scores:
        """Returns the scores of the law at ε [..., *S]."""
        score = noise.score(eps)
        return cls(score, eps * score - 1 if learned else None)


def likelihood_ratio(scores: Scores, odd: Tensor, even: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns the terms whose sums over the draws are σ δ, without `scores.factor`, and ∂J/∂log σ.

    σ δ = E[L s(ε)] and ∂J/∂log σ = E[L (ε s(ε) - 1)]

    Args:
        scores: those of the draws.
        odd: weights of s(ε), which is odd in ε [...]; for an antithetic pair L(ε) - L(-ε).
        even: weights of ε s(ε) - 1, which is even [...]; for a pair L(ε) + L(-ε). None if σ is not learned.

    Reference:
        Peng, Xiao, Heidergott, Hong, Lam, INFORMS Journal on Computing 2022, theorem 1.
    """
    units = [1] * (scores.by_z.dim() - odd.dim())
    by_delta = odd.view(*odd.shape, *units) * scores.by_z
    if even is None or scores.by_scale is None:
        return by_delta, None
    return by_delta, even.view(*even.shape, *units) * scores.by_scale
