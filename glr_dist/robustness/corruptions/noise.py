"""Noise that is independent between elements.  Shapes: x [N, C, H, W] -> [N, C, H, W], not yet clipped to [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_noise(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Returns x + c ε, ε standard normal: sensor noise in low light."""
    return x + c * torch.randn(x.shape, generator=stream)


def shot_noise(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Returns Poisson(c x) / c: photon counts, with mean c for a white pixel."""
    return torch.poisson(x * c, generator=stream) / c


def impulse_noise(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Sets each element to 0 with probability c/2 and to 1 with probability c/2: dead and saturated elements."""
    u = torch.rand(x.shape, generator=stream)
    return torch.where(u < c, (u >= c / 2).float(), x)


def speckle_noise(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Returns x + c x ε, ε standard normal: noise proportional to the brightness."""
    return x + x * (c * torch.randn(x.shape, generator=stream))
