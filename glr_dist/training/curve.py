"""The learning curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glr_dist.figures import figure_of


def curve_figure(history: Sequence[dict[str, Any]]) -> Any:
    """Returns a figure of loss and validation accuracy against the epoch, side by side.

    Args:
        history: the metrics of each epoch, oldest first.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [record["epoch"] for record in history]
    figure = figure_of(10, 4)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [record["train_loss"] for record in history], marker=".", label="train, with noise")
    left.plot(epochs, [record["validation_loss"] for record in history], marker=".", label="validation, without noise")
    left.set(xlabel="epoch", ylabel="mean loss", ylim=(0, None))
    left.legend()
    if "validation_accuracy" in history[0]:
        right.plot(epochs, [record["validation_accuracy"] for record in history], marker=".", color="tab:green")
        right.set(xlabel="epoch", ylabel="validation accuracy, without noise")
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:  # real values
        for name in ("r2", "auc", "f1", "mae"):
            if f"validation_{name}" in history[0]:
                right.plot(epochs, [record[f"validation_{name}"] for record in history], marker=".", label=name)
        right.set(xlabel="epoch", ylabel="validation metrics, without noise")
        if right.lines:
            right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
