"""The fast gradient sign method (Goodfellow, Shlens, Szegedy: Explaining and Harnessing Adversarial Examples, 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from glr_dist.robustness.attacks.base import Adversarial, Target, log_odds, usable
from glr_dist.streams import Key


@dataclass(frozen=True)
class FGSM:
    """x' = clip(x + ε sign ∂L/∂x), with the direction of the cross-entropy's gradient (`log_odds`).

    Args:
        eps: ε, the maximum change of a pixel; pixel values lie in [0, 1].
    """

    eps: float

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        gradients, tested = usable(target.gradients(x, y, log_odds))
        return Adversarial((x + self.eps * gradients.sign()).clamp(0, 1), tested)
