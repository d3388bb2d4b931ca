"""The Square attack in L∞, which needs class scores only (Andriushchenko, Croce, Flammarion, Hein, ECCV 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from glr_dist.robustness.attacks.base import Adversarial, Target
from glr_dist.streams import Key, generator

_HALVED_AT = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # queries of 10,000 at which a square's area is halved


@dataclass(frozen=True)
class Square:
    """Random search: sets squares of pixels to x ± ε and keeps changes that reduce the margin, score of y - best other.

    Args:
        eps: ε, the maximum change of a pixel.
        queries: maximum number of queries of an example's scores.
        share: fraction of the pixels that the first squares cover.
        stop: keep the first point that changes the target's prediction. Turn this off for random predictions.
    """

    eps: float
    queries: int = 5000
    share: float = 0.8
    stop: bool = True

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        stream = generator(key, x.device)
        n, channels, height, width = x.shape
        best = (x + self.eps * _signs((n, channels, 1, width), x, stream)).clamp(0, 1)  # vertical stripes
        margins = _margins(target.scores(best), y)
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        for query in range(1, self.queries):
            alive = ((margins >= 0) | (not self.stop)).nonzero()[:, 0]
            if not len(alive):
                break
            side = self._side(query, height, width)
            # Drawn for all examples: the draws of an example must not depend on the others of its block.
            top = torch.randint(0, height - side + 1, (n, 1), generator=stream, device=x.device)[alive]
            left = torch.randint(0, width - side + 1, (n, 1), generator=stream, device=x.device)[alive]
            signs = _signs((n, channels, 1, 1), x, stream)[alive]
            inside = ((rows >= top) & (rows < top + side))[:, None, :, None] & (
                (columns >= left) & (columns < left + side)
            )[:, None, None, :]
            clean, now = x[alive], best[alive]
            tried = torch.where(inside, clean + self.eps * signs, now).clamp(0, 1)
            new_margins = _margins(target.scores(tried), y[alive])
            better = new_margins < margins[alive]
            best[alive[better]] = tried[better]
            margins[alive[better]] = new_margins[better]
        return Adversarial(best, torch.ones_like(y, dtype=torch.bool))

    def _side(self, query: int, height: int, width: int) -> int:
        halvings = sum(query * 10_000 > at * self.queries for at in _HALVED_AT)
        side = math.sqrt(self.share * 0.5**halvings * height * width)
        return min(max(1, round(side)), height, width)


def _signs(shape: tuple[int, ...], x: Tensor, stream: torch.Generator) -> Tensor:
    return 2 * torch.empty(shape, dtype=x.dtype, device=x.device).random_(0, 2, generator=stream) - 1


def _margins(scores: Tensor, y: Tensor) -> Tensor:
    """Returns the score of the label minus the best other score [n]; below 0 another class is predicted."""
    own = scores.gather(1, y[:, None])[:, 0]
    return own - scores.scatter(1, y[:, None], -torch.inf).amax(1)
