"""Blurs: linear functions of the image.  Shapes: x [N, C, H, W] -> [N, C, H, W]."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor


def smooth(x: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Applies a Gaussian filter along height and width: `sigma` in pixels, truncated at `truncate` · sigma."""
    return torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode=mode, truncate=truncate))


def gaussian_blur(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Applies a Gaussian filter of standard deviation c pixels."""
    return smooth(x, c)


def defocus_blur(x: Tensor, c: tuple[float, float], stream: torch.Generator) -> Tensor:
    """Correlates the image with a disk of radius c[0] whose edge is softened by c[1]: a lens out of focus."""
    return torch.from_numpy(ndimage.correlate(x.numpy(), disk(*c)[None, None], mode="mirror"))


def disk(radius: float, softness: float) -> NDArray[np.float64]:
    """Returns the kernel [k, k]: equal weights of sum 1 within `radius`, smoothed by a small Gaussian filter.

    The filter has 3 x 3 taps (5 x 5 above radius 8) of standard deviation `softness`, and reflects at the border of the
    kernel. Where the disk reaches the border, the sum of the kernel deviates from 1 by about 0.01, as in the benchmark.
    """
    reach, taps = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    axis = np.arange(-reach, reach + 1)
    kernel: NDArray[np.float64] = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    weights = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * softness**2))
    for side in (0, 1):
        kernel = ndimage.correlate1d(kernel, weights / weights.sum(), axis=side, mode="mirror")
    return kernel


def motion_blur(x: Tensor, c: tuple[int, float], stream: torch.Generator) -> Tensor:
    """Returns Σ_i w_i x(p + i · direction), i = 0 … 2 c[0]: a moving camera, with one direction in ±45° per image.

    w is half a Gaussian of standard deviation c[1]. Steps are rounded to the nearest pixel, and border pixels are
    repeated outwards, as in ImageMagick's filter of this name.
    """
    radius, sigma = c
    n, _, height, width = x.shape
    angles = math.pi / 4 * (2 * torch.rand(n, generator=stream, dtype=torch.float64) - 1).numpy()
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    # From numpy: the bits of some elementwise functions of torch depend on the number of threads.
    downs = torch.from_numpy(np.ceil(steps[:, None] * np.sin(angles) - 0.5)).long()  # [steps, N]
    rights = torch.from_numpy(np.ceil(steps[:, None] * np.cos(angles) - 0.5)).long()
    blurred = torch.zeros_like(x)
    for weight, down, right in zip(weights.tolist(), downs, rights, strict=True):
        rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)  # [N, H]
        columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)  # [N, W]
        moved = x.gather(2, rows[:, None, :, None].expand_as(x)).gather(3, columns[:, None, None, :].expand_as(x))
        blurred += weight * moved
    return blurred


def zoom_blur(x: Tensor, c: tuple[float, float], stream: torch.Generator) -> Tensor:
    """Averages the image and its zooms into the centre by 1, 1 + c[1], … below c[0]: a camera moving forwards."""
    stop, step = c
    factors = np.arange(1, stop, step).tolist()
    total = x.clone()
    for factor in factors:
        total += torch.from_numpy(_zoomed(_zoomed(x.numpy(), 2, factor), 3, factor))
    return total / (len(factors) + 1)


def _zoomed(x: NDArray[np.float32], dim: int, factor: float) -> NDArray[np.float32]:
    """Stretches the central 1/factor of a dimension linearly and trims it to the original size."""
    side = x.shape[dim]
    crop = math.ceil(side / factor)
    stretched = round(crop * factor)
    places = (np.arange(side) + (stretched - side) // 2) * ((crop - 1) / max(stretched - 1, 1))
    lower = places.astype(np.int64)
    upper = np.minimum(lower + 1, crop - 1)
    first = (side - crop) // 2
    share = (places - lower).astype(np.float32).reshape(-1, *[1] * (x.ndim - 1 - dim))
    below, above = (x.take(first + index, dim) for index in (lower, upper))
    stretch: NDArray[np.float32] = below * (1 - share) + above * share
    return stretch
