"""Trade-off between clean and robust accuracy along the training of each model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from glr_dist.figures import figure_of
from glr_dist.reproduction.results import CLEAN, ModelResult, Point

# Okabe and Ito's palette; markers tell the models apart in grey print.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MEAN = "mean of corruptions"


def tradeoff_figure(models: Sequence[ModelResult]) -> Any:
    """Returns a figure of robust against clean accuracy: a panel per transfer attack, and one of all corruptions.

    A curve is the mean over the seeds after each evaluated epoch, with a large marker at the end of the training;
    diamonds with an edge are published figures.
    """
    curves = {model.model: mean_curve([seed.curve for seed in model.seeds]) for model in models}
    conditions = list(dict.fromkeys(name for curve in curves.values() for point in curve for name in point))
    panels = [name for name in conditions if "," in name] + [_MEAN]
    figure = figure_of(5.6 * len(panels), 5.4)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        titles: list[str] = []  # two models may have the same published figures
        for number, model in enumerate(models):
            look: dict[str, Any] = {"color": _COLOURS[number % 8], "marker": _MARKERS[number % 8]}
            points = [(100 * p[CLEAN], 100 * y) for p in curves[model.model] if (y := _value(p, panel)) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), markersize=3, linewidth=1.3, label=model.model, **look)
                axes.plot(*points[-1], markersize=9, markeredgecolor="black", linestyle="none", **look)
            named = CLEAN in model.published and model.title not in titles
            if named and (y := _value(model.published, panel)) is not None:
                place = (100 * model.published[CLEAN], 100 * y)
                axes.scatter(*place, s=70, marker="D", facecolors="none", edgecolors=look["color"], linewidths=2)
                label = {"ha": "right", "xytext": (-7, -10 if len(titles) % 2 else 5), "textcoords": "offset points"}
                axes.annotate(model.title, place, fontsize=7, **label)
                titles.append(model.title)
        axes.set(xlabel="clean accuracy, %", ylabel="accuracy, %", title=panel)
        axes.grid(alpha=0.3)
    figure.suptitle("diamonds: published figures")
    handles = {label: h for axes in figure.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    return figure


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Returns the mean over the seeds after each epoch that all of them have evaluated."""
    by_epoch = [{point["epoch"]: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*map(set, by_epoch))) if by_epoch else []
    return [
        {
            name: statistics.fmean(each[epoch][name] for each in by_epoch)
            for name in by_epoch[0][epoch]
            if all(name in each[epoch] for each in by_epoch) and name != "epoch"
        }
        for epoch in shared
    ]


def _value(point: Point, panel: str) -> float | None:
    """Returns the accuracy that a panel shows."""
    if panel != _MEAN:
        return point.get(panel)
    values = [value for name, value in point.items() if "," not in name and name not in (CLEAN, "epoch")]
    return statistics.fmean(values) if values else None
