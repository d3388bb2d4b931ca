"""Trade-off between clean and robust accuracy, along the training of each model or over the values of a setting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
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
    curves = {model.name: mean_curve([seed.curve for seed in model.seeds]) for model in models}
    return _figure(curves, models, "large: end of the training; diamonds: published figures")


def over_figure(models: Sequence[ModelResult]) -> Any:
    """Returns a figure of robust against clean accuracy after training, with a curve of each model over the values.

    It has a panel per attack, and one of all corruptions. A point is the mean over the seeds of the runs with a value,
    which stands beside it.
    """
    curves: dict[str, list[Point]] = {}
    labels: dict[str, list[str]] = {}
    for model in models:
        conditions = dict.fromkeys(each for seed in model.seeds for each in seed.final)
        found = {each: mean for each in conditions if (mean := model.mean(each)) is not None}
        curves.setdefault(model.model, []).append(found)
        labels.setdefault(model.model, []).append(model.value)
    return _figure(curves, models, "large: the last value; diamonds: published figures", labels)


def _figure(
    curves: Mapping[str, Sequence[Point]],
    models: Sequence[ModelResult],
    title: str,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Returns a figure of curves by name, with the published figures of the models, and labels beside the points."""
    conditions = list(dict.fromkeys(name for curve in curves.values() for point in curve for name in point))
    panels = [name for name in conditions if "," in name] + [_MEAN]
    figure = figure_of(5.6 * len(panels), 5.4)
    published = {model.title: model.published for model in models if CLEAN in model.published}
    colours: dict[str, str] = {}  # of the first model that has a row of the paper
    for number, name in enumerate(curves):
        for model in models:
            if name in (model.model, model.name):
                colours.setdefault(model.title, _COLOURS[number % 8])
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (name, curve) in enumerate(curves.items()):
            look: dict[str, Any] = {"color": _COLOURS[number % 8], "marker": _MARKERS[number % 8]}
            texts = labels[name] if labels else [""] * len(curve)
            shown = [(p, text, y) for p, text in zip(curve, texts, strict=True) if (y := _value(p, panel)) is not None]
            points = [(100 * p[CLEAN], 100 * y) for p, _, y in shown]
            if points:
                axes.plot(*zip(*points, strict=True), markersize=3, linewidth=1.3, label=name, **look)
                axes.plot(*points[-1], markersize=9, markeredgecolor="black", linestyle="none", **look)
            for (_, text, _), place in zip(shown, points, strict=True):
                if text:
                    axes.annotate(text, place, fontsize=6, xytext=(3, 3), textcoords="offset points")
        for number, (name, values) in enumerate(published.items()):
            if (y := _value(values, panel)) is not None:
                place = (100 * values[CLEAN], 100 * y)
                axes.scatter(*place, s=70, marker="D", facecolors="none", edgecolors=colours[name], linewidths=2)
                offset = {"ha": "right", "xytext": (-7, -10 if number % 2 else 5), "textcoords": "offset points"}
                axes.annotate(name, place, fontsize=7, **offset)
        axes.set(xlabel="clean accuracy, %", ylabel="accuracy, %", title=panel)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
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
    values = [
        value
        for name, value in point.items()
        if "," not in name and not name.startswith("certified") and name not in (CLEAN, "epoch")
    ]
    return statistics.fmean(values) if values else None
