"""Losses: `loss(outputs [B, …], targets [B, …]) -> [B]`, one value per example, never reduced.

Shapes: C classes, T tokens, *P pixels. A loss over the tokens or pixels of an example is their mean; where the target
is `IGNORED` (padding), they do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from glr_dist.errors import UserError
from glr_dist.misclassification import Law, Misclassification
from glr_dist.registry import LOSSES
from glr_dist.trees import Tree

__all__ = [
    "IGNORED",
    "LOSSES",
    "Expectation",
    "ExpectationEstimate",
    "Loss",
    "binary_cross_entropy",
    "cross_entropy",
    "differentiable",
    "estimate_of",
    "expectation",
    "has_derivative",
    "hinge",
    "jaccard",
    "mse",
    "per_example",
    "top5",
    "zero_one",
]

Loss = Callable[[Tensor, Tree], Tensor]

Expectation = Callable[[Tensor, Tree, Tensor], Tensor]  # (outputs z, targets, σ) -> E[loss(z + σ ε, targets)] [B]
ExpectationEstimate = Callable[[Tensor, Tree, Tensor, Tensor], Tensor]  # (z, targets, σ, u) -> an estimate of it [B]
L = TypeVar("L", bound=Loss)


class NoiseLaw(Law, Protocol):
    """A noise law, as a loss that offers its expectation sees it."""

    @property
    def has_cdf(self) -> bool:
        """True if the law has the methods of `Law`."""
        ...


def expectation(loss: Loss, law: Any) -> Expectation | None:
    """Returns the expectation of a loss over noise that is added to the outputs, or None if the loss does not offer it.

    A loss offers it by an attribute or a method `expected(law)`, which returns a function of the outputs [B, …], the
    targets and the scale σ (a scalar, or in the shape of one example's outputs), or None if it does not know that law.
    """
    offer = None if hasattr(loss, "__wrapped__") else getattr(loss, "expected", None)  # a wrapper is another loss
    return None if offer is None else offer(law)


def differentiable(loss: L) -> L:
    """Declares a loss to be continuous, and differentiable almost everywhere by autograd."""
    loss.differentiable = True  # type: ignore[attr-defined]
    return loss


def has_derivative(loss: Loss) -> bool:
    """True if a loss is declared to be differentiable."""
    return not hasattr(loss, "__wrapped__") and getattr(loss, "differentiable", False) is True


IGNORED = -100  # target of a token or pixel that does not count, as in torch


@differentiable
def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns -log softmax(outputs)[target] [B].

    Args:
        outputs: scores of the classes [B, C], of each token [B, T, C], or of each pixel [B, C, *P].
        targets: class numbers [B], [B, T] or [B, *P]. Where both readings fit, the classes are the last dimension.
    """
    scores = _class_last(outputs, targets)
    # Several times faster on a CPU than torch's own, which first writes the whole log-softmax.
    return _mean(scores.logsumexp(-1) - scores.gather(-1, _classes(targets)[..., None])[..., 0], targets)


def zero_one(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 where argmax(outputs) differs from the target, else 0 [B]; takes the shapes of `cross_entropy`.

    Its expectation over the noise of the outputs is known for every law with a CDF.
    """
    return _mean((_class_last(outputs, targets).argmax(-1) != targets).to(outputs.dtype), targets)


_GOLDEN = 0.6180339887498949  # multiples of it are spread evenly modulo 1


def estimate_of(offered: Expectation) -> ExpectationEstimate | None:
    """Returns the estimate of an expectation by a random number for each example; None if it has none."""
    return offered.estimate if isinstance(offered, _ExpectedZeroOne) and not offered.wrong.law.kinked else None


def _expected_zero_one(law: NoiseLaw) -> Expectation | None:
    """Returns the expectation of `zero_one`: the probability of a wrong class."""
    if not law.has_cdf:
        return None
    return _ExpectedZeroOne(Misclassification(law))


@dataclass(frozen=True)
class _ExpectedZeroOne:
    """E[zero_one(z + σ ε, targets)] [B]."""

    wrong: Misclassification

    def __call__(self, outputs: Tensor, targets: Tensor, scale: Tensor, u: Tensor | None = None) -> Tensor:
        scores = _class_last(outputs, targets)
        if scale.dim():
            scale = _class_last(scale.expand(outputs.shape), targets).flatten(0, -2)
        if u is not None and targets.dim() > 1:  # others for each token or pixel of an example: the errors average out
            places = torch.arange(targets[0].numel(), device=u.device, dtype=u.dtype)
            u = (u[:, None] + _GOLDEN * places).frac().flatten()
        risk = self.wrong(scores.flatten(0, -2), _classes(targets).flatten(), scale, u)
        return _mean(risk.view(targets.shape), targets)

    def estimate(self, outputs: Tensor, targets: Tensor, scale: Tensor, u: Tensor) -> Tensor:
        """Returns an unbiased estimate of the expectation [B], by fewer nodes, for u uniform in [0, 1) [B]."""
        return self(outputs, targets, scale, u)


zero_one.expected = _expected_zero_one  # type: ignore[attr-defined]


def top5(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 where five classes score at least as high as the target, else 0 [B]; outputs [B, C], targets [B]."""
    own = outputs.gather(-1, targets[:, None])
    return ((outputs >= own).sum(-1) > 5).to(outputs.dtype)


@differentiable
def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns max(0, 1 + max_{j ≠ y} z_j - z_y) [B] of scores z [B, C] and class numbers y [B].

    Reference:
        Crammer, Singer: On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, JMLR 2001.
    """
    own = outputs.gather(-1, targets[:, None])
    others = outputs.scatter(-1, targets[:, None], -torch.inf)
    return (1 + others.amax(-1) - own[:, 0]).clamp(min=0)


@differentiable
def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared difference of an example's values [B].

    Args:
        outputs: values [B, …].
        targets: values of the same shape, or class numbers [B], which stand for one-hot values [B, C].
    """
    return (outputs - _like(outputs, targets, "mse")).square().flatten(1).mean(1)


@differentiable
def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean of log(1 + e^z) - t z over an example's labels [B].

    Args:
        outputs: logits z [B, …] of the labels.
        targets: t in [0, 1] of the same shape, or class numbers [B], which stand for one-hot labels [B, C].
    """
    labels = _like(outputs, targets, "binary_cross_entropy")
    return (functional.softplus(outputs) - labels * outputs).flatten(1).mean(1)


def jaccard(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 - |A ∩ B| / |A ∪ B| [B] of the labels or pixels A whose logit is positive, and the targets B.

    Args:
        outputs: logits [B, …].
        targets: 0 or 1 of the same shape, or class numbers [B], which stand for one-hot labels [B, C].
    """
    labels = _like(outputs, targets, "jaccard").flatten(1) > 0
    found = outputs.flatten(1) > 0
    union = (found | labels).sum(1)
    return 1 - ((found & labels).sum(1) / union.clamp(min=1)).where(union > 0, 1).to(outputs.dtype)


def per_example(values: Tensor, batch: int) -> Tensor:
    """Returns `values` if they are one loss for each of `batch` examples.

    Raises:
        UserError: they are not; the message gives their shape or type.
    """
    if not isinstance(values, Tensor) or values.shape != (batch,):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"loss: must return one value per example, shape ({batch},) for {batch} examples, got {found}")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def _class_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the scores [B, …, C] for targets [B, …]."""
    if outputs.dim() == targets.dim() + 1:
        if outputs.shape[:-1] == targets.shape:
            return outputs
        if outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            return outputs.movedim(1, -1)
    if targets.is_floating_point():
        raise UserError("loss: the targets are real numbers; it takes classes, which are integers or names")
    raise UserError(
        f"loss: the targets have shape {tuple(targets.shape)} and the outputs {tuple(outputs.shape)}: the outputs need "
        "one dimension more, that of the classes"
    )


def _classes(targets: Tensor) -> Tensor:
    """Returns the class numbers: the targets, 0 in the place of tokens and pixels that do not count."""
    return targets if targets.dim() == 1 else targets.where(targets != IGNORED, 0)


def _mean(values: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean of the values of each example whose target counts."""
    if values.dim() == 1:
        return values
    counts = (targets != IGNORED).to(values.dtype).flatten(1)
    return (values.flatten(1) * counts).sum(1) / counts.sum(1).clamp(min=1)


def _like(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Returns targets in the shape and type of the outputs; class numbers become one-hot."""
    if targets.dim() == 1 and outputs.dim() == 2 and not targets.is_floating_point():
        return functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    if targets.shape != outputs.shape:
        raise UserError(
            f"loss: {name} compares outputs {tuple(outputs.shape)} with targets {tuple(targets.shape)}; they must have "
            "one shape, or the targets be class numbers"
        )
    return targets.to(outputs.dtype)
