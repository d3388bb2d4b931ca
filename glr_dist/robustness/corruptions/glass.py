"""Glass blur: swaps of nearby pixels, as behind frosted glass.  Shapes: x [N, C, H, W] -> [N, C, H, W]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from glr_dist.robustness.corruptions.blur import smooth


def glass_blur(x: Tensor, c: tuple[Any, ...], stream: torch.Generator) -> Tensor:
    """Blurs, swaps pixels in c[2] rounds with others up to c[1] pixels away, and blurs again.

    Both blurs have standard deviation c[0]. This differs from the benchmark's program in two ways. The benchmark swaps
    colour pixels through two views of the same array and so loses one of them; here, a swap always exchanges whole
    pixels. The benchmark also rounds pixels to 8 bits; this function does not.

    A fourth constant "one axis" makes it the blur of the paper's experiments: it took the width of a grey image for its
    channels, so it blurs along the height only, and it rounds down to 8 bits after each blur.
    """
    sigma, reach, rounds, *variant = c
    blur = _one_axis if variant and x.shape[1] == 1 else smooth
    x = blur(x, sigma)
    n, _, height, width = x.shape
    places = _shuffled(displacements(n, height, width, reach, rounds, stream), height, width, reach)
    shuffled = x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1))
    return blur(shuffled.view_as(x), sigma)


def _one_axis(x: Tensor, sigma: float) -> Tensor:
    """Applies a Gaussian filter along the height, and rounds down to 8 bits."""
    blurred = ndimage.gaussian_filter1d(x.double().numpy(), sigma, axis=2, mode="nearest")
    return torch.from_numpy(np.floor(255 * blurred) / 255).to(x.dtype)


def displacements(n: int, height: int, width: int, reach: int, rounds: int, stream: torch.Generator) -> Tensor:
    """Draws the displacements (down, right) of all swaps, uniform on {-reach, …, reach - 1}.

    Returns:
        [rounds, rows, columns, 2, N]. Rows and columns are the starting pixels of the swaps, H - reach … reach + 1 and
        W - reach … reach + 1 in descending order; an image that is too small has none.
    """
    rows, columns = max(height - 2 * reach, 0), max(width - 2 * reach, 0)
    return torch.randint(-reach, reach, (rounds, rows, columns, 2, n), generator=stream, dtype=torch.int8)


def _shuffled(swaps: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Applies all swaps in order; returns the source pixel of each place [N, H · W].

    The swaps of one image depend on each other, so the loop runs over swaps and each step handles all images.
    """
    n = swaps.shape[-1]
    images = np.arange(n)
    places = np.repeat(np.arange(height * width), n)  # place-major: the N values of one place are adjacent
    for round_swaps in swaps.numpy():
        for row, row_swaps in zip(range(height - reach, reach, -1), round_swaps, strict=True):
            for column, (down, right) in zip(range(width - reach, reach, -1), row_swaps, strict=True):
                place = row * width + column
                here = places[place * n : (place + 1) * n]
                there = (place + down.astype(np.int64) * width + right) * n + images
                found = places[there]
                places[there] = here
                here[:] = found
    return torch.from_numpy(places).view(height * width, n).T
