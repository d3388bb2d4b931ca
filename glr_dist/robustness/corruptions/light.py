"""Weather and exposure.  Shapes: x [N, C, H, W] -> [N, C, H, W], not yet clipped to [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def fog(x: Tensor, c: tuple[float, float], stream: torch.Generator) -> Tensor:
    """(x + c[0] · plasma) · m / (m + c[0]), m the brightest element of the image: the fog dims what it covers."""
    density, decay = c
    brightest = x.amax((1, 2, 3), keepdim=True)
    _, _, height, width = x.shape
    haze = plasma(len(x), max(height, width), decay, stream)[:, None, :height, :width]
    return (x + density * haze) * brightest / (brightest + density)


def plasma(n: int, side: int, decay: float, stream: torch.Generator) -> Tensor:
    """Fractal height maps on [0, 1] by the diamond-square algorithm [N, S, S], S ≥ side a power of two.

    The maps are periodic. From coarse to fine, the middle of each square gets the mean of its corners, then the
    middle of each edge gets the mean of its four neighbours, each plus a uniform deviate; the deviates shrink by
    decay² from one scale to the next.
    """
    size = max(1 << (side - 1).bit_length(), 2)  # of one pixel a map has no range
    maps = torch.zeros(n, size, size)
    step, spread = size, 1.0

    def near(total: Tensor) -> Tensor:
        return total / 4 + spread * (2 * torch.rand(total.shape, generator=stream) - 1)

    while step > 1:
        half = step // 2
        corners = maps[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        middles = near(pairs + pairs.roll(-1, 2))
        maps[:, half::step, half::step] = middles
        maps[:, ::step, half::step] = near(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        maps[:, half::step, ::step] = near(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        step, spread = half, spread / decay**2
    maps -= maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True)


def brightness(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """V + c, V the value of a pixel in HSV: its largest channel.

    Hue and saturation stay, so all channels grow by the factor of V; a black pixel turns grey.
    """
    value = x.amax(1, keepdim=True)
    brighter = (value + c).clamp(max=1)
    return torch.where(value > 0, x / value * brighter, brighter)


def contrast(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """μ + c (x - μ), μ the mean of each image and channel."""
    # numpy's mean: torch's sums over many elements depend on the number of threads bit by bit.
    mean = torch.from_numpy(x.numpy().mean((2, 3), keepdims=True))
    return (x - mean) * c + mean
