"""The head: how the noise of the last site enters the estimate.

    sampled     it is drawn, as at every other site
    derivative  it is drawn, and δ is the loss's derivative at the noisy logits
    expected    the loss's expectation over it takes the place of the loss, in shared passes and in redraws; δ is the
                derivative of that expectation, without a draw

Under `expected`, the losses of a shared pass and its redraws only enter differences and means. So unbiased estimates of
the expectations, by one random number for each example of the shared pass, take their place if the loss offers them; δ
is the derivative of the expectation itself.

By the tower rule all three estimate the gradient of the same J. The last two need a loss that offers them; `expected`
also needs a network whose outputs are the noisy logits of its last site.

Shapes: B rows (copies of n examples), *S the shape of the last site's logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from glr_dist.errors import ConfigError, NoGradientError, SiteError, UserError
from glr_dist.losses import (
    Expectation,
    ExpectationEstimate,
    Loss,
    estimate_of,
    expectation,
    has_derivative,
    per_example,
)
from glr_dist.network import Network
from glr_dist.noise import Noise
from glr_dist.sites import Site, Tape
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import Tree, copied, same_memory, taken

if TYPE_CHECKING:
    from glr_dist.estimators.step import Step

_EXAMPLES, _DRAWS, _ELEMENTS = 8, 2**15, 2**22  # of `check_expectation`; the last bounds the number of elements drawn

SAMPLED, DERIVATIVE, EXPECTED = "sampled", "derivative", "expected"


class Head(NamedTuple):
    """Kind of the head; for `expected` the loss's expectation, and its estimate by a random number, if it has one."""

    kind: str = SAMPLED
    expectation: Expectation | None = None
    estimate: ExpectationEstimate | None = None


SAMPLED_HEAD = Head()


def head_of(wanted: str, network: Network, loss: Loss, noise: Noise | None) -> Head:
    """Returns the head that an option stands for; `auto` is the best that loss, law and network allow.

    Raises:
        ConfigError: the loss does not offer an expectation under this law.
        SiteError: the outputs are not the noisy logits of the last site.
    """
    if wanted in (SAMPLED, DERIVATIVE) or noise is None:
        return Head(wanted)
    offered = expectation(loss, noise)
    if wanted == EXPECTED:
        if offered is None:
            name = getattr(loss, "__name__", type(loss).__name__)
            raise ConfigError(
                f"estimator.head: 'expected' is not allowed: the loss {name} does not offer its expectation under "
                f"{noise.law} noise; use 'auto'"
            )
        if network.head_shape is None:
            raise SiteError(_between(network))
    if network.head_shape is None:
        return SAMPLED_HEAD
    if offered is not None:
        return Head(EXPECTED, offered, estimate_of(offered))
    return Head(DERIVATIVE if has_derivative(loss) else SAMPLED)


class LastLogits:
    """The last site's logits z of a pass without noise there, and the proof that the pass returned them unchanged."""

    def __init__(self, z: Tensor) -> None:
        self.z, self._version = z, 0 if z.is_inference() else z._version

    def are(self, outputs: Tensor) -> bool:
        """True if the outputs are these logits: they lie in the same memory, which was not written since."""
        return same_memory(outputs, self.z) and self.z._version == self._version


def expected_losses(step: Step, outputs: Tensor, targets: Tree, last: LastLogits, u: Tensor) -> Tensor:
    """Returns the expectations of the losses [B] over the noise of the last site, which the pass did not add.

    Estimates of them take their place, if the loss offers these; `u` [n] has the random numbers of the examples.

    Raises:
        SiteError: the outputs are not the logits of the last site.
    """
    if not last.are(outputs):
        raise SiteError(_between(step.network))
    scale = _like(step.scales[step.network.sites[-1].name], outputs)
    if step.head.estimate is not None:
        rows = u.repeat(len(outputs) // len(u))  # copies of an example are compared, and so have one number
        return per_example(step.head.estimate(outputs, targets, scale, rows), len(outputs))
    assert step.head.expectation is not None
    return per_example(step.head.expectation(outputs, targets, scale), len(outputs))


def expected_gradient(step: Step, z: Tensor, targets: Tree) -> tuple[Tensor, Tensor]:
    """Returns the derivatives of the expected losses, summed over the rows: by z [B, *S], and by log σ (in its shape).

    Args:
        step: the step.
        z: logits of the last site [B, *S], without noise.
        targets: those of the rows, a tree of tensors [B, …].

    Raises:
        NoGradientError: the expectation does not have a derivative.
    """
    assert step.head.expectation is not None
    assert step.network.head_shape is not None
    z = z.detach().clone().requires_grad_()
    log_scale = step.scales[step.network.sites[-1].name].log().requires_grad_()
    with torch.enable_grad():
        outputs = z.view(len(z), *step.network.head_shape)
        losses = per_example(step.head.expectation(outputs, targets, _like(log_scale.exp(), outputs)), len(z))
    if not losses.requires_grad:
        raise NoGradientError("estimator.head: the expectation of the loss does not have a derivative; use 'sampled'")
    ones = torch.ones_like(losses)
    by_z, by_scale = torch.autograd.grad(losses, [z, log_scale], ones, materialize_grads=True)
    return by_z.contiguous(), by_scale  # the bits of a sum over the rows depend on the strides, which a transfer loses


def expected_shares(
    step: Step, site: Site, tape: Tape, targets: Tree, share: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    """Returns the shares of a shared pass in δ / N of the last site [n, *S] and, if σ is learned, in that of log σ.

    Args:
        step: the step.
        site: the last site.
        tape: the shared pass.
        targets: those of the example block, a tree of tensors [n, …].
        share: weight of one loss in J.
    """
    by_z, by_scale = expected_gradient(step, tape.logits[site.name], targets)
    return by_z * share, by_scale * share if site.name in step.log_scales else None


def derivative_shares(
    step: Step, site: Site, gradient: Tensor, shift: Tensor, share: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    """Returns the shares of draws in δ / N of the last site [n, *S] and, if σ is learned, in the gradient of log σ.

    Args:
        step: the step; its head is `derivative`.
        site: the last site.
        gradient: of the losses at the noisy logits [S·R·n, *S].
        shift: σ ε [R, n, *S].
        share: weight of one loss in J.
    """
    gradient = gradient.view(step.signs, *shift.shape)
    delta = gradient.sum((0, 1)) * share
    if site.name not in step.log_scales:
        return delta, None
    signed = gradient[0] - gradient[1] if step.options.antithetic else gradient[0]
    units = (signed * shift).sum((0, 1)) * share  # ∂v/∂log σ = σ ε
    return delta, units if step.scales[site.name].dim() else units.sum()


def head_gradient(v: Tensor, losses: Tensor, site: Site, *, traced: bool = False) -> Tensor:
    """Returns the gradient of the losses at the last site's noisy logits v in the shape of v.

    Raises:
        NoGradientError: the losses have no gradient there, or a zero one; the latter is unknown while they are traced.
    """
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses, v, torch.ones_like(losses), allow_unused=True)
        if gradient is not None and (traced or gradient.any()):
            return gradient
    raise NoGradientError(
        f"estimator.head: the loss has no derivative at the logits of '{site.name}' (the loss, or an activation after "
        "the site, is discontinuous); use 'sampled'"
    )


def check_expectation(step: Step) -> None:
    """Compares the expectation that a loss offers with the mean of the loss over draws, on a few examples.

    Raises:
        UserError: they differ.
    """
    n = min(_EXAMPLES, step.size)
    x, y, network = taken(step.x, slice(n)), taken(step.y, slice(n)), step.network
    site = network.sites[-1]
    z = network.run(x, lambda name, _, logits: logits, step.uniforms(0, 0))
    assert step.noise is not None
    assert step.head.expectation is not None
    scale = _like(step.scales[site.name], z)
    expected = per_example(step.head.expectation(z, y, scale), n)
    draws = max(2, min(_DRAWS, _ELEMENTS // z.numel()))
    stream = generator(Key(step.seed, site=site.index, role=Role.VERIFICATION), step.device)
    eps = step.noise_at(site).sample((draws, *z.shape), stream, z.dtype)
    losses = per_example(step.loss((z + scale * eps).flatten(0, 1), copied(y, draws)), draws * n).view(draws, n)
    mean, rare = losses.mean(0), 40 / draws * losses.abs().max()  # a loss in one of the draws, or in none
    allowed = 6 * losses.std(0) / draws**0.5 + rare + 1e-4
    if ((difference := (expected - mean).abs()) > allowed).any():
        worst = int((difference / allowed).argmax())
        raise UserError(
            f"loss: its `expected` gives {expected[worst].item():.4g} under {step.noise_at(site).law} noise for an "
            f"example whose mean loss over {draws:,} draws is {mean[worst].item():.4g}; correct it, or use "
            "estimator.head 'sampled'"
        )


def _like(scale: Tensor, outputs: Tensor) -> Tensor:
    """Returns σ as a scalar, or in the shape of one example's outputs."""
    return scale.reshape(outputs.shape[1:]) if scale.dim() else scale


def _between(network: Network) -> str:
    return (
        f"estimator.head: 'expected' needs outputs that are the logits of the last site, and something lies between "
        f"'{network.sites[-1].name}' and the outputs; let the loss do it, or use 'auto'"
    )
