"""The L∞ certificates of a run as a Markdown page that is readable as plain text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from glr_dist.figures import figure_of
from glr_dist.robustness.certificates.linf.report import LinfReport
from glr_dist.robustness.page import described, table
from glr_dist.robustness.plots import intervals


def linf_markdown(report: LinfReport) -> str:
    """Returns the certificates as a page of tables."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: LinfReport) -> Iterator[str]:
    settings = report.settings
    chosen = ", the best on validation images" if report.checkpoint == "best" else ""
    yield f"# Certified robustness of {report.run} ({report.name})"
    yield ""
    yield f"{described(report.config)}; after epoch {report.epoch}{chosen}; predictions without noise."
    yield ""
    yield "Certified at ε: the prediction is right, and no change of each pixel by at most ε, within [0, 1], changes"
    yield "it, whatever the attack. Accuracies are in %, with 95 % intervals (Wilson)."
    yield ""
    yield f"Clean: {report.clean} on {report.clean.examples:,} {settings.split} images."
    yield ""
    rows = [[f"{e.eps:g}", str(e.by_intervals), str(e.certified), str(e.attacked)] for e in report.radii]
    yield from table(["L∞ radius ε", "certified by intervals", "certified", "under attack"], rows)
    yield ""
    yield f"Under attack: L∞ PGD of {settings.steps} steps, and the counterexamples of the programs. The true robust"
    yield "accuracy lies between the last two columns."


def linf_figure(report: LinfReport) -> Any:
    """Returns a figure of certified and attacked accuracy against ε."""
    figure = figure_of(7, 4.5)
    axes = figure.subplots()
    eps = [0.0, *(each.eps for each in report.radii)]
    curves = {
        "under attack": ([each.attacked for each in report.radii], "#D55E00", "--", "s"),
        "certified": ([each.certified for each in report.radii], "#0072B2", "-", "o"),
        "certified by intervals": ([each.by_intervals for each in report.radii], "#009E73", ":", "^"),
    }
    for label, (rates, colour, line, marker) in curves.items():
        look = {"color": colour, "linestyle": line, "marker": marker, "label": label}
        axes.errorbar(eps, **intervals([report.clean, *rates]), **look)
    axes.set(xlabel="ε (L∞, pixel values in [0, 1])", ylabel="accuracy, %", ylim=(-2, 102))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(f"{report.run}: certified accuracy")
    return figure
