"""Noise on every element.  Shapes: x [N, C, H, W] -> [N, C, H, W], not yet clipped to [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_noise(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Noise of a sensor in low light: x + c ε, ε standard normal."""
    return x + c * torch.randn(x.shape, generator=stream)


def shot_noise(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Poisson(c x) / c: the count of photons, c of them for a white pixel."""
    return torch.poisson(x * c, generator=stream) / c


def impulse_noise(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Each element turns 0 with probability c/2 and 1 with probability c/2: dead and saturated elements."""
    u = torch.rand(x.shape, generator=stream)
    return torch.where(u < c, (u >= c / 2).float(), x)


def speckle_noise(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Noise that grows with the light: x + c x ε, ε standard normal."""
    return x + x * (c * torch.randn(x.shape, generator=stream))
