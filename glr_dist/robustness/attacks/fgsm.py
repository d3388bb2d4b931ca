"""The fast gradient sign method (Goodfellow, Shlens, Szegedy: Explaining and Harnessing Adversarial Examples, 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from glr_dist.robustness.attacks.base import Adversarial, Target, log_odds, usable
from glr_dist.streams import Key


@dataclass(frozen=True)
class FGSM:
    """x' = clip(x + ε sign ∂L/∂x), L the cross-entropy (by its direction, `log_odds`).

    Args:
        eps: ε, the most that a pixel changes; images lie in [0, 1].
    """

    eps: float

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        slopes, tested = usable(target.slopes(x, y, log_odds))
        return Adversarial((x + self.eps * slopes.sign()).clamp(0, 1), tested)
