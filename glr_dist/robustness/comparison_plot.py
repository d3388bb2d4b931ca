"""The plot of a comparison: bars of accuracy per condition and run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glr_dist.figures import figure_of
from glr_dist.robustness.comparison_table import Column, conditions_of
from glr_dist.robustness.plots import intervals

# Okabe and Ito's palette, ordered so that neighbours differ in grey print; hatches tell repetitions apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_HATCHES = ("", "///", "...", "xxx")


def comparison_figure(columns: Sequence[Column], eps: float | None) -> Any:
    """Returns a figure with a group of bars per condition and a bar per run; diamonds are the paper's results."""
    names = conditions_of(columns)
    width = 0.8 / len(columns)
    figure = figure_of(max(8.0, 2 + 0.17 * len(names) * (1 + len(columns))), 6)
    axes = figure.subplots()
    for number, column in enumerate(columns):
        entries = column.entries.values()
        place = {name: index + (number - (len(columns) - 1) / 2) * width for index, name in enumerate(names)}
        colour = _COLOURS[number % len(_COLOURS)]
        look = {"color": colour, "edgecolor": "white", "linewidth": 0.5, "hatch": _HATCHES[number % len(_HATCHES)]}
        measured = [(place[e.condition], 100 * e.accuracy) for e in entries if e.accuracy is not None]
        axes.bar([x for x, _ in measured], [y for _, y in measured], width, **look, label=column.title)
        rated = [(place[e.condition], e.rate) for e in entries if e.rate is not None]
        if rated:
            bars = intervals([rate for _, rate in rated])
            axes.errorbar([x for x, _ in rated], **bars, linestyle="none", color="black", linewidth=1)
        published = [(place[e.condition], 100 * e.paper) for e in entries if e.paper is not None]
        if published:
            diamonds: dict[str, Any] = {"color": colour, "edgecolors": "black", "marker": "D", "zorder": 3}
            label = f"paper's {column.model}"
            axes.scatter([x for x, _ in published], [y for _, y in published], **diamonds, label=label)
        for entry in entries:
            if entry.accuracy is None:
                axes.text(place[entry.condition], 1, "not testable", rotation=90, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(ylabel="accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(5, 2 * len(columns)))
    axes.set_title("robustness" if eps is None else f"robustness; attacks in L∞ at ε = {eps:g}")
    return figure
