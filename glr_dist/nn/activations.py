"""Activations without a useful derivative. They pass no gradient: autograd sees a constant."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Heaviside(nn.Module):
    """Threshold unit: 1 where x > 0, else 0."""

    thresholds = (0.0,)

    def forward(self, x: Tensor) -> Tensor:
        return torch.gt(x.detach(), 0, out=torch.empty_like(x))


class Sign(nn.Module):
    """Sign of x: -1, 0 or 1."""

    thresholds = (0.0,)

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().sign()


class Staircase(nn.Module):
    """Saturating ramp of `steps` stairs: ⌊x · steps⌋ / steps, clipped to [0, 1].

    Args:
        steps: number of stairs, at least 1 (1 is a threshold at x = 1).
    """

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"Staircase: steps {steps} is not allowed: an integer >= 1")
        self.steps = steps
        self.thresholds = tuple(k / steps for k in range(1, steps + 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().mul(self.steps).floor_().div_(self.steps).clamp_(0, 1)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"
