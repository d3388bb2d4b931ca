"""Glass blur: pixels trade places with near ones, as behind frosted glass.  Shapes: x [N, C, H, W] -> [N, C, H, W]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from glr_dist.robustness.corruptions.blur import smooth


def glass_blur(x: Tensor, c: tuple[float, int, int], stream: torch.Generator) -> Tensor:
    """Blur, c[2] rounds of swaps with a pixel up to c[1] away, blur again; both blurs of standard deviation c[0].

    A swap exchanges whole pixels. The benchmark's own program does so for grey images only: of a colour pixel it
    swaps two views of one array, and loses one of the two. Nor are pixels rounded to 8 bits here.
    """
    sigma, reach, rounds = c
    x = smooth(x, sigma)
    n, _, height, width = x.shape
    places = _shuffled(displacements(n, height, width, reach, rounds, stream), height, width, reach)
    shuffled = x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1))
    return smooth(shuffled.view_as(x), sigma)


def displacements(n: int, height: int, width: int, reach: int, rounds: int, stream: torch.Generator) -> Tensor:
    """All swaps' (down, right), uniform on {-reach, …, reach - 1} [rounds, rows, columns, 2, N].

    Rows and columns are those that swaps start from, H - reach … reach + 1 and W - reach … reach + 1 in falling
    order; an image too small for any has none.
    """
    rows, columns = max(height - 2 * reach, 0), max(width - 2 * reach, 0)
    return torch.randint(-reach, reach, (rounds, rows, columns, 2, n), generator=stream, dtype=torch.int8)


def _shuffled(swaps: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Which pixel of its image comes to each place [N, H · W], after all swaps in their order.

    Swaps of one image follow each other, so the loop runs over the swaps, and each step serves all images.
    """
    n = swaps.shape[-1]
    images = np.arange(n)
    places = np.repeat(np.arange(height * width), n)  # place major: the N values of one place lie side by side
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
