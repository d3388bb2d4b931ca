"""The contact sheet of an evaluation: the first images under each series of conditions, with their predictions."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glr_dist.data import Split
from glr_dist.figures import figure_of
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.measurement import SAMPLES, Measurement


def sheet_figure(
    conditions: Sequence[Condition], measurements: Mapping[str, Sequence[Measurement]], images: Split
) -> Any:
    """Returns a figure with a row per series of conditions and a column per image; a title is the predicted class.

    Args:
        conditions: all conditions.
        measurements: label of a condition -> measurements in the order of the blocks.
        images: the clean images.
    """
    shown = [condition for condition in _shown(conditions) if not measurements[condition.label][0].reason]
    labels = images.labels[:SAMPLES].tolist()
    shape = images.images.shape[1:]
    figure = figure_of(1.1 * len(labels) + 2.4, 1.25 * len(shown) + 0.3)
    grid = figure.subplots(len(shown), len(labels), squeeze=False)
    for row, condition in zip(grid, shown, strict=True):
        first = measurements[condition.label][0]
        pixels = np.frombuffer(b64decode(first.images), np.uint8).reshape(-1, *shape).transpose(0, 2, 3, 1)
        for axes, image, predicted, label in zip(row, pixels, first.predictions, labels, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            if predicted == label:
                axes.set_title(str(predicted), fontsize=9, pad=2)
            else:
                axes.set_title(f"× {predicted}", fontsize=9, pad=2, color="#D55E00", fontweight="bold")
        name = _row_title(condition.label)
        row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
        for axes in row:
            axes.axis("off")
    figure.suptitle("predicted classes; × marks an error")
    return figure


def _shown(conditions: Sequence[Condition]) -> list[Condition]:
    """Returns one condition of each series: the clean images, a middle ε, the highest severity."""
    series: dict[str, list[Condition]] = {}
    for condition in conditions:
        series.setdefault(condition.series, []).append(condition)
    return [group[group[0].shown(len(group))] for group in series.values()]


def _row_title(label: str) -> str:
    """Returns a condition's label with its strength in words, one part per line."""
    label = re.sub(r"/s(\d)$", r"/severity \1", label).replace("/eps_", "/ε = ")
    return label.replace("_", " ").replace("/", "\n")
