"""Variance reduction: baselines by independent groups, and the blocks of directions that keep groups whole.

Shapes: S signs of a direction, R directions of a block, n examples.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

from torch import Tensor

from glr_dist.errors import ConfigError
from glr_dist.estimators.samplers import DirectionBlock


def centred(losses: Tensor, baseline: str, shared: Tensor) -> Tensor:
    """Subtracts a baseline from the losses that is independent of the noise they are multiplied with.

    Args:
        losses: [S, R, n].
        baseline: "none"; "shared": the loss of the shared pass; "leave_one_out": the mean loss of the block's other
            directions. A direction and its negative form one group, because a baseline that contains one of them is
            biased for the other.
        shared: losses of the shared pass [n].

    Returns:
        [S, R, n].
    """
    if baseline == "none":
        return losses
    if baseline == "shared":
        return losses - shared
    groups = losses.mean(0)
    return losses - (groups.sum(0) - groups) / (groups.shape[0] - 1)


@lru_cache(maxsize=256)  # every step makes the same calls
def blocks(directions: int, frame: int | None, limit: int, least: int) -> tuple[DirectionBlock, ...]:
    """Cuts the directions of a site into blocks that end at frame edges.

    Args:
        directions: number of directions: of antithetic pairs, else of copies.
        frame: rows of a frame (D), or None if there are no frames.
        limit: maximum number of directions of a block.
        least: minimum number: 2 for leave-one-out, else 1.

    Raises:
        ConfigError: a frame has fewer rows than `least`.
    """
    size = max(limit, least)
    if frame is None or frame <= size:  # whole frames side by side
        unit = frame or 1
        units, per_block = -(-directions // unit), size // unit
        count = max(1, min(-(-units // per_block), directions // (unit * least) or 1))
        edges = [min(unit * (units * i // count), directions) for i in range(count + 1)]
    else:  # each frame cut into parts
        edges = [0]
        for first in range(0, directions, frame):
            rows = min(frame, directions - first)
            count = max(1, min(-(-rows // size), rows // least))
            edges += [first + rows * (i + 1) // count for i in range(count)]
    cut = tuple(DirectionBlock(i, start, stop, directions) for i, (start, stop) in enumerate(itertools.pairwise(edges)))
    if any(block.stop - block.start < least for block in cut):
        raise ConfigError(
            f"estimator.copies: {directions} directions in frames of {frame} leave a single one, "
            "baseline 'leave_one_out' needs two: change copies, or use baseline 'shared'"
        )
    return cut


@lru_cache(maxsize=256)
def grouped(cut: tuple[DirectionBlock, ...], most: int) -> tuple[tuple[DirectionBlock, ...], ...]:
    """Joins consecutive blocks into at most `most` groups of nearly equal length."""
    count = min(most, len(cut))
    edges = [len(cut) * i // count for i in range(count + 1)]
    return tuple(cut[start:stop] for start, stop in itertools.pairwise(edges))
