"""A redraw, all but the draw itself, as one function of tensors that torch's compiler builds.

It computes what `Redraw.eager_shares` computes, in a form that makes few passes over memory: both signs of a direction
in one expression, and δ of orthogonal Gaussian directions as a product,

    Σ_r (L_r - b) ε_r = (2 b_n - 1) ∘ Σ_r (L_r - b) χ_r q_r

Shapes: S signs, R directions, n examples, *S the shape of the site's logits, D their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from glr_dist.estimators.fused_arguments import Name, held, lent, names_of, of_kind, values
from glr_dist.estimators.head import derivative_shares, expected_shares, head_gradient
from glr_dist.estimators.levels import scores_of
from glr_dist.estimators.samplers import DirectionBlock, Frames, orthogonal_frames
from glr_dist.estimators.step import Pass, Step, WorkItem, likelihood_ratio, unchanged
from glr_dist.estimators.unit_wise import draw_block, next_linear, unit_wise_shares
from glr_dist.estimators.variance import centred
from glr_dist.inductor import built
from glr_dist.network import Uniforms
from glr_dist.noise import Gaussian
from glr_dist.sites import Site, Tape
from glr_dist.trees import Tree, leaves, mapped

Shares = tuple[Tensor, Tensor | None]  # of δ / N [n, *S], and of the gradient of log σ


@lru_cache(maxsize=64)
def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(value, dtype=dtype)


@dataclass(frozen=True)
class Call:
    """Inputs of a redraw: a step, its item and tape, and the noise that is drawn.

    Attributes:
        step: the step.
        item: the work item.
        site: its site.
        tape: the shared pass.
        block: its block of directions, or of moves; None if nothing is drawn.
        drawn: ε [R, n, D], or its factors; unit by unit, what the moves draw.
        targets: those of the example block, a tree of tensors [n, …].
        noisy: True if the other sites keep the noise of the shared pass.
    """

    step: Step
    item: WorkItem
    site: Site
    tape: Tape
    block: DirectionBlock | None
    drawn: Frames | Tensor | None
    targets: Tree
    noisy: bool

    @classmethod
    def of(cls, step: Step, item: WorkItem, block: DirectionBlock | None, site: Site, tape: Tape, noisy: bool) -> Call:
        """Draws the noise of a block of directions."""
        n = len(tape.logits[site.name])
        drawn: Frames | Tensor | None
        if block is None:
            drawn = None
        elif site.name in step.unit_wise:
            drawn = draw_block(step, item, block, site, n)
        elif step.framed(site):
            key = step.key(item.shared_pass, site.index, item.example_block)
            drawn = orthogonal_frames(key, block, n, site.units, step.network.dtype, step.device)
        else:
            drawn = step.draw(site, item, block, n).flatten(2)
        return cls(step, item, site, tape, block, drawn, step.targets(item.example_block, 1), noisy)

    @property
    def examples(self) -> int:
        """Number of examples, n."""
        return len(self.tape.logits[self.site.name])

    @cached_property
    def factors(self) -> list[Tensor]:
        """The tensors that are drawn."""
        if self.drawn is None:
            return []
        return leaves(tuple(self.drawn) if isinstance(self.drawn, Frames) else self.drawn)

    def with_factors(self, factors: list[Tensor]) -> Frames | Tensor | None:
        """Returns what is drawn, made of other tensors."""
        if not isinstance(self.drawn, Frames):
            return factors[0] if factors else None
        number = len(self.drawn.rows)
        return Frames(tuple(factors[:number]), tuple(factors[number:-1]), factors[-1])

    @property
    def share(self) -> Tensor:
        """Weight of one loss in J, a scalar."""
        step, name = self.step, self.site.name
        copies = 1 if self.block is None or name in step.unit_wise else step.copies[name]
        return _scalar(1 / (step.size * step.passes[name] * copies), step.network.dtype)

    @property
    def weights(self) -> Tensor:
        """Weights of the drawn examples [n]."""
        assert self.tape.weights is not None
        return self.tape.weights

    @property
    def logits(self) -> list[str]:
        """The sites whose logits in the shared pass a redraw begins with."""
        linear = next_linear(self.step.network, self.site) if self.site.name in self.step.unit_wise else None
        return [self.site.name, *([linear.site.name] if linear else [])]

    def noise(self, site: str) -> Tensor:
        """Returns σ ε [n, *S] of another site in the shared pass."""
        kept, item = self.tape.noise, self.item
        if site not in kept:
            kept[site] = self.step.shared_shift(self.step.network.by_name[site], item.shared_pass, item.example_block)
        return kept[site]

    def uniforms(self, number: int, shape: tuple[int, ...]) -> Tensor:
        """Returns the uniforms [n, …] of a call of a keyed module."""
        draw = self.step.uniforms(self.item.shared_pass, self.item.example_block)
        return draw(number, torch.empty(self.examples, *shape, device=self.step.device))


@dataclass(frozen=True)
class FusedRedraw:
    """A compiled redraw of one shape.

    Attributes:
        digest: identifies the generated code.
    """

    run: Callable[..., tuple[Tensor, ...]]
    names: tuple[Name, ...]
    digest: str

    def __call__(self, call: Call) -> Shares:
        """Returns the shares of a block of redraws in δ / N [n, *S] and, if σ is learned, in the gradient of log σ."""
        found = self.run(*values(_GIVEN, call, self.names))
        return found[0], found[1] if len(found) > 1 else None


def fused(call: Call) -> FusedRedraw:
    """Compiles the redraw of the shapes of a call; the network has the hooks of a pass.

    Raises:
        CompileError: it cannot be compiled.
    """
    noises, uniforms = _requests(call)
    model, tape, site = call.step.network.model, call.tape, call.site
    names: list[Name] = [
        *(("factor", i) for i in range(len(call.factors))),
        *((kind, None) for kind in ("share", "losses", "u", *(["weights"] if tape.weights is not None else []))),
        *(("logits", name) for name in call.logits),
        *(("scale", name) for name in call.step.scales),
        *(("noise", name) for name in noises),
        *(("uniforms", request) for request in uniforms),
        *names_of("target", call.targets),
        *names_of("start", () if site.top else tape.starts[site.block]),
        *(("statistics", name) for name in tape.statistics),
        *(("tensor", place) for place in held(model)),
    ]

    def function(*arguments: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, arguments, strict=True))
        with lent(model, given):
            return _body(call, given)

    found = built(function, values(_GIVEN, call, names))
    return FusedRedraw(found.run, tuple(names[i] for i in found.used), found.digest)


_GIVEN: dict[str, Callable[[Call, Any], Tensor]] = {
    "factor": lambda call, i: call.factors[i],
    "share": lambda call, _: call.share,
    "logits": lambda call, site: call.tape.logits[site],
    "losses": lambda call, _: call.tape.losses,
    "u": lambda call, _: call.tape.u,
    "weights": lambda call, _: call.weights,
    "scale": lambda call, site: call.step.scales[site],
    "noise": lambda call, site: call.noise(site),
    "uniforms": lambda call, request: call.uniforms(*request),
    "target": lambda call, i: leaves(call.targets)[i],
    "start": lambda call, i: leaves(call.tape.starts[call.site.block])[i],
    "statistics": lambda call, which: call.tape.statistics[which],
    "tensor": lambda _, place: place.tensor(),
}


def _body(call: Call, given: Mapping[Name, Tensor]) -> tuple[Tensor, ...]:
    """Computes a redraw from the given tensors alone."""
    site, tape, n = call.site, call.tape, call.examples

    def uniforms(number: int, x: Tensor) -> Tensor:
        drawn = given["uniforms", (number, tuple(x.shape[1:]))]
        return drawn.repeat(len(x) // n, *[1] * (x.dim() - 1))

    step = replace(call.step, scales={name: given["scale", name] for name in call.step.scales})
    noisy = step.adding(lambda other: given["noise", other.name])
    traced = replace(
        call,
        step=step,
        tape=Tape(
            logits={name: given["logits", name] for name in call.logits},
            losses=given["losses", None],
            u=given["u", None],
            weights=None if tape.weights is None else given["weights", None],
            starts={} if site.top else {site.block: of_kind(given, "start", tape.starts[site.block])},
            statistics={name: given["statistics", name] for name in tape.statistics},
        ),
        drawn=call.with_factors([given["factor", i] for i in range(len(call.factors))]),
        targets=of_kind(given, "target", call.targets),
    )
    delta, scales = _shares(traced, noisy if call.noisy else unchanged, uniforms, given["share", None])
    return (delta,) if scales is None else (delta, scales)


def _requests(call: Call) -> tuple[list[str], list[tuple[int, tuple[int, ...]]]]:
    """Returns the sites whose shared noise a redraw adds, and the uniforms that its keyed modules draw."""
    noises: list[str] = []
    drawn: list[tuple[int, tuple[int, ...]]] = []

    def noise(other: Site) -> Tensor:
        noises.append(other.name)
        return call.noise(other.name)

    def uniforms(number: int, x: Tensor) -> Tensor:
        request = number, tuple(x.shape[1:])
        drawn.append(request)
        return call.uniforms(*request).repeat(len(x) // call.examples, *[1] * (x.dim() - 1))

    _shares(call, call.step.adding(noise) if call.noisy else unchanged, uniforms, call.share)
    return list(dict.fromkeys(noises)), list(dict.fromkeys(drawn))


def _shares(call: Call, noisy: Callable[[Site, Tensor], Tensor], uniforms: Uniforms, share: Tensor) -> Shares:
    """Returns the shares of a block of redraws in δ / N [n, *S] and, if σ is learned, in the gradient of log σ."""
    step, site, tape, drawn, n = call.step, call.site, call.tape, call.drawn, call.examples
    if call.block is None:
        return expected_shares(step, site, tape, call.targets, share)
    if site.name in step.unit_wise:
        assert not isinstance(drawn, Frames)
        return unit_wise_shares(step, site, tape, call.block, drawn, call.targets, noisy, uniforms, share)
    assert drawn is not None
    scale, z, noise, learned = step.scales[site.name], tape.logits[site.name], step.noise_at(site), step.log_scales
    eps = drawn.eps() if isinstance(drawn, Frames) else drawn
    eps = eps.view(*eps.shape[:2], *site.shape)
    directions = len(eps)
    signs = 1 - 2 * torch.arange(step.signs, dtype=z.dtype, device=z.device)  # 1, or 1 and -1
    v = z + signs.view(-1, *[1] * eps.dim()) * (scale * eps)
    passing = Pass(step, noisy, tape.u)
    v = v.view(-1, *site.shape)
    targets = mapped(lambda y: y.repeat(step.signs * directions, *[1] * (y.dim() - 1)), call.targets)
    if step.differentiated(site):
        with torch.enable_grad():
            outputs = step.network.replay(site, tape, v.requires_grad_(), passing.visit, uniforms)
            gradient = head_gradient(v, passing.losses(outputs, targets), site, traced=True)
        return derivative_shares(step, site, gradient, scale * eps, share)
    outputs = step.network.replay(site, tape, v, passing.visit, uniforms)
    losses = passing.losses(outputs, targets).view(step.signs, directions, n)
    weights = tape.weighted(centred(losses, step.options.baseline, tape.losses))
    odd = weights[0] - weights[1] if step.options.antithetic else weights[0]
    even = weights.sum(0) if site.name in learned else None
    if isinstance(drawn, Frames) and type(noise) is Gaussian and even is None and site.name not in step.levels:
        return _along(drawn, odd).view(z.shape) / scale * share, None
    scores = scores_of(step, site, z, eps, v.view(step.signs, directions, n, *site.shape))
    by_delta, by_scale = likelihood_ratio(scores, odd, even)
    delta = by_delta.sum(0) / scale * share
    if scores.factor is not None:
        delta = delta * scores.factor
    if by_scale is None:
        return delta, None
    units = by_scale.sum((0, 1)) * share
    return delta, units if scale.dim() else units.sum()


def _along(frames: Frames, weights: Tensor) -> Tensor:
    """Returns Σ_r w_rn ε_rn [n, D] for weights w [R, n]."""
    weights, parts, start = weights * frames.radii, [], 0
    for q, bits in zip(frames.rows, frames.bits, strict=True):
        rows = q.shape[0] * q.shape[1]
        part = weights[start : start + rows].view(*q.shape[:2], -1)
        start += rows
        product = part.transpose(1, 2) @ q if len(q) > 1 else (part[0].T @ q[0])[None]
        parts.append((product * (2 * bits.to(q) - 1)).sum(0))
    return sum(parts[1:], parts[0])
