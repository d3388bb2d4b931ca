"""What became of one block of test images under one condition."""

from __future__ import annotations

from typing import NamedTuple

SAMPLES = 8  # images of the first block that are kept to be looked at


class Outcome(NamedTuple):
    """What became of a block, in values that JSON knows.

    Attributes:
        correct: for each image, "1" where it is still classified well, else "0".
        tested: "0" where the attack had no derivative to follow.
        baseline: `correct` of the baseline, under a corruption.
        lengths: L2 norms of the perturbations, of an attack that looks for the least.
        predictions: of the first images.
        images: the first images, 8 bits a value, in base64.
        reason: why the attack cannot test this network; then nothing else is told.
    """

    correct: str = ""
    tested: str = ""
    baseline: str = ""
    lengths: tuple[float, ...] = ()
    predictions: tuple[int, ...] = ()
    images: str = ""
    reason: str = ""
