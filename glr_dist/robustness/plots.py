"""Plots of a robustness report: accuracy against ε and against the severity of corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glr_dist.figures import figure_of
from glr_dist.robustness.rate import Rate
from glr_dist.robustness.report import AttackResult, Report

# Okabe and Ito's palette can be told apart with any colour vision, line styles and markers in grey print.
_THREATS: dict[str, dict[str, Any]] = {
    "white_box": {"color": "#0072B2", "linestyle": "-"},
    "transfer": {"color": "#E69F00", "linestyle": "--"},
    "adaptive": {"color": "#D55E00", "linestyle": "-."},
    "black_box": {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    "control": {"color": "#7F7F7F", "linestyle": ":"},
}
_MARKERS = {"fgsm": "o", "pgd": "s", "square": "D", "random_sign": "x"}
_BASELINE = {"color": "#7F7F7F", "linestyle": "--", "marker": "s", "label": "baseline"}
_NOT_TESTABLE = ": not testable"
_NORMS = {"linf": "ε (L∞, pixel values in [0, 1])", "l2": "ε (L2)"}


def intervals(rates: Sequence[Rate]) -> dict[str, Any]:
    """Returns accuracies in % with their intervals as arguments of `errorbar`."""
    below = [100 * (rate.accuracy - rate.low) for rate in rates]
    above = [100 * (rate.high - rate.accuracy) for rate in rates]
    return {"y": [100 * rate.accuracy for rate in rates], "yerr": [below, above], "capsize": 2, "markersize": 5}


def eps_figure(report: Report) -> Any:
    """Returns a figure of accuracy against ε: one panel per norm, one curve per attack and threat model."""
    norms = list(dict.fromkeys(a.norm for a in report.attacks if a.eps is not None))
    figure = figure_of(8.5 * len(norms), 4.5)
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        _eps_panel(axes, report, norm)
    figure.suptitle(f"{report.run}: accuracy under attack, with 95 % intervals")
    return figure


def _eps_panel(axes: Any, report: Report, norm: str) -> None:
    curves: dict[tuple[str, str], list[AttackResult]] = {}
    for result in report.attacks:
        if result.norm == norm and result.eps is not None and result.rate is not None:
            curves.setdefault((result.attack, result.threat), []).append(result)
    for (attack, threat), results in curves.items():
        rates = [report.clean, *(result.rate for result in results if result.rate)]
        label = attack if threat in ("black_box", "control") else f"{attack}, {threat.replace('_', ' ')}"
        look = {**_THREATS[threat], "marker": _MARKERS[attack], "label": label}
        axes.errorbar([0, *(result.eps for result in results)], **intervals(rates), **look)
    robust = {r.eps: r.rate for r in reversed(report.robust_accuracies) if r.norm == norm and r.rate is not None}
    if robust:
        rates = [report.clean, *(robust[eps] for eps in sorted(robust))]
        look = {"color": "black", "linewidth": 2.5, "linestyle": "-", "zorder": 1, "label": "robust accuracy"}
        axes.errorbar([0, *sorted(robust)], **intervals(rates), **look)
    refused = [f"{a.attack}, {a.threat.replace('_', ' ')}" for a in report.attacks if a.norm == norm and a.reason]
    for name in dict.fromkeys(refused):
        axes.plot([], [], linestyle="none", label=name + _NOT_TESTABLE)
    axes.set(xlabel=_NORMS[norm], ylabel="accuracy, %", ylim=(-2, 102))
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    last = [label.endswith(_NOT_TESTABLE) for label in labels]
    order = sorted(range(len(labels)), key=last.__getitem__)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    axes.legend([handles[i] for i in order], [labels[i] for i in order], fontsize=8, handlelength=3.5, **place)


def severity_figure(report: Report) -> Any:
    """Returns a figure of accuracy against severity: one panel per corruption, for this network and the baseline."""
    names = list(dict.fromkeys(result.name for result in report.corruptions))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = figure_of(max(4.0, 3.2 * columns), 2.9 * rows + 0.4)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, name in zip(grid, names, strict=False):
        results = [result for result in report.corruptions if result.name == name]
        severities = [0, *(result.severity for result in results)]
        own = {"color": "#0072B2", "marker": "o", "label": report.run}
        axes.errorbar(severities, **intervals([report.clean, *(r.rate for r in results)]), **own)
        axes.errorbar(severities[1:], **intervals([r.baseline for r in results]), **_BASELINE)
        axes.set(title=name.replace("_", " "), xlabel="severity", xticks=severities)
        axes.grid(alpha=0.3)
    for axes in grid[len(names) :]:
        axes.axis("off")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    for row in range(rows):
        grid[row * columns].set_ylabel("accuracy, %")
    figure.suptitle(f"{report.run}: accuracy under corruption ({report.suite.corruptions.constants})")
    return figure
