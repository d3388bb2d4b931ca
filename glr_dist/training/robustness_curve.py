"""Robustness along the training of a run, as a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glr_dist.figures import figure_of

# Names such as robust/quick-validation/fgsm_transfer_eps_0.1, corruption/quick-validation/fog_s3 and
# certified/l2-validation/r_0.5; the panels are drawn in this order.
_PANELS = (
    (re.compile(r"robust/[^/]+/(?P<curve>.+)_eps_(?P<panel>[^_]+)$"), "attacks, ε = {}"),
    (re.compile(r"robust/[^/]+/(?P<curve>[^/]+)$"), "attacks without ε"),
    (re.compile(r"corruption/[^/]+/(?P<curve>.+)_s\d$"), "corruptions, mean of severities"),
    (re.compile(r"certified/(?P<panel>[^/]+)/(?P<curve>clean|(r|eps)_[^/]+)$"), "certified, {}"),
)
_CLEAN = re.compile(r"clean/[^/]+/accuracy$")
_STYLES = ("-", "--", "-.", ":")
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

Curves = dict[str, list[float]]  # name of the curve -> accuracy by evaluated epoch


def has_robustness(history: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether the robustness was evaluated after an epoch."""
    return any(_CLEAN.match(key) for record in history for key in record)


def evaluated(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the records of the epochs after which the robustness was evaluated."""
    return [record for record in history if any(map(_CLEAN.match, record))]


def robustness_curve_figure(history: Sequence[Mapping[str, Any]]) -> Any:
    """Returns a figure of accuracies against the epoch: a panel per ε, one of corruptions, one per certificate.

    Args:
        history: the metrics of each epoch, oldest first.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    records = evaluated(history)
    epochs = [record["epoch"] for record in records]
    clean = [next(value for key, value in record.items() if _CLEAN.match(key)) for record in records]
    panels = _panels(records) or {"robustness": {}}
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = figure_of(5.2 * columns, 4.4 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        if "clean" not in curves:
            axes.plot(epochs, clean, color="black", linewidth=2.2, label="clean")
        for number, (name, values) in enumerate(curves.items()):
            look: dict[str, Any] = {"color": _COLOURS[number % 6], "linestyle": _STYLES[number // 6 % 4]}
            if name == "clean":
                look = {"color": "black", "linewidth": 2.2}
            axes.plot(epochs, values, marker=".", label=name, **look)
        axes.set(title=title, xlabel="epoch", ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    for row in range(rows):
        grid[row * columns].set_ylabel("accuracy")
    return figure


def _panels(records: Sequence[Mapping[str, Any]]) -> dict[str, Curves]:
    """Returns the curves of each panel, in order; a missing value is not a number, which leaves a gap."""
    panels: dict[tuple[int, str], dict[str, list[list[float]]]] = {}
    for number, record in enumerate(records):
        for panel, curve, value in _values(record):
            points = panels.setdefault(panel, {}).setdefault(curve, [[] for _ in records])
            points[number].append(value)
    return {
        title: {
            curve: [sum(point) / len(point) if point else float("nan") for point in points]
            for curve, points in panels[rank, title].items()
        }
        for rank, title in sorted(panels)
    }


def _values(record: Mapping[str, Any]) -> Iterator[tuple[tuple[int, str], str, float]]:
    """Yields the rank and title of the panel, the name of the curve and the value of each metric of robustness."""
    for key, value in record.items():
        for rank, (pattern, title) in enumerate(_PANELS):
            if (match := pattern.match(key)) is not None:
                curve = match["curve"].replace("_", " ").replace("all attacks", "robust accuracy,")
                yield (rank, title.format(match.groupdict().get("panel", ""))), curve, value
                break
