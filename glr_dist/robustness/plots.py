"""Pictures of a robustness report: accuracy against ε and against severity, and a sheet of the images themselves."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glr_dist.data import Split
from glr_dist.figures import figure_of
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.outcome import SAMPLES, Outcome
from glr_dist.robustness.report import AttackResult, Rate, Report

_COLOURS = {"white_box": "tab:blue", "transfer": "tab:green", "adaptive": "tab:red", "black_box": "tab:purple"}
_MARKERS = {"fgsm": "o", "pgd": "s", "square": "D", "random_sign": "x"}


def draw(
    report: Report,
    conditions: Sequence[Condition],
    outcomes: Mapping[str, Sequence[Outcome]],
    images: Split,
    folder: Path,
) -> list[str]:
    """Draws what the report has into PNG files of a folder.

    Returns:
        The names of the files.
    """
    drawn = []
    if any(attack.eps and attack.rate for attack in report.attacks):
        _draw_eps(report, folder / "robustness_eps.png")
        drawn.append("robustness_eps.png")
    if report.corruptions:
        _draw_severity(report, folder / "robustness_severity.png")
        drawn.append("robustness_severity.png")
    _draw_sheet(conditions, outcomes, images, folder / "robustness_images.png")
    return [*drawn, "robustness_images.png"]


def intervals(rates: Sequence[Rate]) -> dict[str, Any]:
    """Accuracies in % with their intervals, as `errorbar` takes them."""
    below = [100 * (rate.accuracy - rate.low) for rate in rates]
    above = [100 * (rate.high - rate.accuracy) for rate in rates]
    return {"y": [100 * rate.accuracy for rate in rates], "yerr": [below, above], "capsize": 2, "markersize": 5}


def _draw_eps(report: Report, path: Path) -> None:
    norms = list(dict.fromkeys(a.norm for a in report.attacks if a.eps is not None))
    figure = figure_of(7 * len(norms), 5)
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        curves: dict[tuple[str, str], list[AttackResult]] = {}
        for result in report.attacks:
            if result.norm == norm and result.eps is not None and result.rate is not None:
                curves.setdefault((result.attack, result.threat), []).append(result)
        for (attack, threat), results in curves.items():
            rates = [report.clean, *(result.rate for result in results if result.rate)]
            label = attack if threat in ("black_box", "control") else f"{attack}, {threat.replace('_', ' ')}"
            look = {"color": _COLOURS.get(threat, "tab:gray"), "marker": _MARKERS[attack], "label": label}
            axes.errorbar([0, *(result.eps for result in results)], **intervals(rates), **look)
        worst = {w.eps: w.rate for w in reversed(report.worst_cases) if w.norm == norm and w.rate is not None}
        if worst:
            thick: dict[str, Any] = {
                "color": "black",
                "linewidth": 2,
                "linestyle": "--",
                "label": "withstand all that tried every image",
            }
            axes.errorbar(
                [0, *sorted(worst)], **intervals([report.clean, *(worst[eps] for eps in sorted(worst))]), **thick
            )
        refused = [f"{a.attack}, {a.threat.replace('_', ' ')}" for a in report.attacks if a.norm == norm and a.reason]
        if refused:
            text = "not testable by\n" + "\n".join(dict.fromkeys(refused))
            axes.text(0.98, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color="gray")
        axes.set(xlabel={"linf": "ε (L∞, pixels in 0…1)", "l2": "ε (L2)"}[norm], ylabel="accuracy, %", ylim=(-2, 102))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"{report.run}: accuracy under attack, 95 % intervals")
    figure.savefig(path, dpi=120)


def _draw_severity(report: Report, path: Path) -> None:
    names = list(dict.fromkeys(result.name for result in report.corruptions))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = figure_of(3.2 * columns, 2.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, name in zip(grid, names, strict=False):
        results = [result for result in report.corruptions if result.name == name]
        severities = [0, *(result.severity for result in results)]
        axes.errorbar(severities, **intervals([report.clean, *(r.rate for r in results)]), marker="o", label=report.run)
        axes.errorbar(
            severities[1:], **intervals([r.baseline for r in results]), marker=".", color="tab:gray", label="baseline"
        )
        axes.set(title=name.replace("_", " "), xlabel="severity", xticks=severities)
        axes.grid(alpha=0.3)
    for axes in list(grid)[len(names) :]:
        axes.axis("off")
    figure.axes[0].legend(fontsize=8)
    for row in range(rows):
        figure.axes[row * columns].set_ylabel("accuracy, %")
    figure.suptitle(f"{report.run}: accuracy under corruption ({report.suite['corruptions']['constants']})")
    figure.savefig(path, dpi=120)


def _shown(conditions: Sequence[Condition]) -> list[Condition]:
    """Clean images, each attack at its middle ε, each corruption at its highest severity."""
    groups: dict[tuple[object, ...], list[Condition]] = {}
    for condition in conditions:
        groups.setdefault((condition.name, condition.threat, condition.norm), []).append(condition)
    return [group[len(group) // 2] if group[0].attack else group[-1] for group in groups.values()]


def _draw_sheet(
    conditions: Sequence[Condition], outcomes: Mapping[str, Sequence[Outcome]], images: Split, path: Path
) -> None:
    """A row for each condition, an image a column, with the class that was predicted."""
    shown = [condition for condition in _shown(conditions) if not outcomes[condition.label][0].reason]
    labels = images.labels[:SAMPLES].tolist()
    shape = images.images.shape[1:]
    figure = figure_of(1.1 * len(labels) + 2.4, 1.25 * len(shown))
    grid = figure.subplots(len(shown), len(labels), squeeze=False)
    for row, condition in zip(grid, shown, strict=True):
        first = outcomes[condition.label][0]
        pixels = np.frombuffer(b64decode(first.images), np.uint8).reshape(-1, *shape).transpose(0, 2, 3, 1)
        for axes, image, predicted, label in zip(row, pixels, first.predictions, labels, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set_title(str(predicted), fontsize=9, pad=2, color="tab:green" if predicted == label else "tab:red")
        row[0].text(
            -0.15,
            0.5,
            condition.label.replace("/", "\n"),
            transform=row[0].transAxes,
            ha="right",
            va="center",
            fontsize=8,
        )
        for axes in row:
            axes.axis("off")
    figure.suptitle("predictions: green right, red wrong")
    figure.savefig(path, dpi=100)
