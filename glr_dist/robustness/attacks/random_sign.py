"""Random noise of an attack's size: the control. An attack must be stronger than this to count as one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glr_dist.robustness.attacks.base import Adversarial, Target
from glr_dist.streams import Key, generator


@dataclass(frozen=True)
class RandomSign:
    """x' = clip(x ± ε), with an independent, uniformly random sign for each pixel.

    Args:
        eps: ε, the change of each pixel.
    """

    eps: float

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        signs = 2 * torch.empty_like(x).random_(0, 2, generator=generator(key, x.device)) - 1
        return Adversarial((x + self.eps * signs).clamp(0, 1), torch.ones_like(y, dtype=torch.bool))
