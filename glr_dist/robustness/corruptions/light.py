"""Weather and exposure.  Shapes: x [N, C, H, W] -> [N, C, H, W], not yet clipped to [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def fog(x: Tensor, c: tuple[float, float], stream: torch.Generator) -> Tensor:
    """Returns (x + c[0] · plasma) · m / (m + c[0]), m the brightest element of the image: fog of smoothness c[1]."""
    density, decay = c
    brightest = x.amax((1, 2, 3), keepdim=True)
    _, _, height, width = x.shape
    haze = plasma(len(x), max(height, width), decay, stream)[:, None, :height, :width]
    return (x + density * haze) * brightest / (brightest + density)


def plasma(n: int, side: int, decay: float, stream: torch.Generator) -> Tensor:
    """Generates fractal height maps in [0, 1] by the diamond-square algorithm.

    The maps are periodic. From coarse to fine, the centre of each square gets the mean of its corners, then the centre
    of each edge gets the mean of its four neighbours, each plus a uniform deviate. The deviates shrink by decay² from
    one scale to the next.

    Returns:
        Maps [n, S, S], with S ≥ side a power of two.
    """
    size = max(1 << (side - 1).bit_length(), 2)  # a map of one pixel has no range
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
    """Adds c to the HSV value V of each pixel, its largest channel.

    Hue and saturation do not change, so all channels scale by the same factor; a black pixel turns grey.
    """
    value = x.amax(1, keepdim=True)
    brighter = (value + c).clamp(max=1)
    return torch.where(value > 0, x / value * brighter, brighter)


def contrast(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Returns μ + c (x - μ), with μ the mean of each image and channel."""
    # From numpy: the bits of torch's sums over many elements depend on the number of threads.
    mean = torch.from_numpy(x.numpy().mean((2, 3), keepdims=True))
    return (x - mean) * c + mean
