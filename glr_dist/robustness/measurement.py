"""The result of one block of images under one condition. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

SAMPLES = 8  # images of the first block that are kept for the contact sheet


class Measurement(NamedTuple):
    """The result of one block of images under one condition, as JSON values.

    Attributes:
        correct: for each image, "1" if it is classified correctly, else "0".
        tested: for each image, "0" if the attack had no gradient to follow, else "1".
        baseline: `correct` of the baseline, under a corruption.
        l2_norms: L2 norms of the perturbations, for an attack that minimises them.
        predictions: predicted classes of the first images.
        images: the first images, 8 bits per value, in base64.
        reason: why the attack cannot test this network; the other fields are empty then.
    """

    correct: str = ""
    tested: str = ""
    baseline: str = ""
    l2_norms: tuple[float, ...] = ()
    predictions: tuple[int, ...] = ()
    images: str = ""
    reason: str = ""
