"""Compares runs: one table and one plot of their robustness reports, with the paper's results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from glr_dist.errors import ConfigError
from glr_dist.figures import figure_of
from glr_dist.files import write_atomically
from glr_dist.robustness.page import described, table
from glr_dist.robustness.plots import intervals
from glr_dist.robustness.published import FGSM_EPS, published
from glr_dist.robustness.rate import Rate
from glr_dist.robustness.report import Report, read_report


class Entry(NamedTuple):
    """One cell of the comparison.

    Attributes:
        condition: name of the row.
        percent: accuracy in %; None if it could not be measured.
        rate: the accuracy with its interval, for a single measurement.
        paper: name of the paper's column that corresponds to it.
    """

    condition: str
    percent: float | None
    rate: Rate | None = None
    paper: str = ""


def compare(folders: Sequence[Path], out: Path, eps: float | None = None) -> str:
    """Compares the reports of runs; writes `compare.md` and `compare.png` to a folder.

    Args:
        folders: folders of runs that were evaluated with the same suite.
        out: folder of the results.
        eps: ε of the attacks to show; default: the paper's 0.13 if it was measured, else the largest.

    Returns:
        The table.

    Raises:
        ConfigError: a run was not evaluated, or with another suite, or not at this ε.
        OSError: the folder cannot be written.
    """
    reports = [read_report(folder) for folder in folders]
    for folder, report in zip(folders, reports, strict=True):
        for key in reports[0].suite.keys() | report.suite.keys():
            if report.suite.get(key) != reports[0].suite.get(key):
                raise ConfigError(f"{folder}: was evaluated with another suite than {folders[0]}: '{key}' differs")
        for key in ("name", "split_seed", "validation", "test"):
            if (value := report.config["data"][key]) != (first := reports[0].config["data"][key]):
                raise ConfigError(f"{folder}: has other data than {folders[0]}: data.{key} is {value!r}, not {first!r}")
    eps = _eps(reports, eps)
    names = [report.run for report in reports]
    # Runs with the same folder name also get the name of the parent folder.
    titles = [
        f"{f.absolute().parent.name}/{n}" if names.count(n) > 1 else n for f, n in zip(folders, names, strict=True)
    ]
    columns = [list(_entries(report, eps)) for report in reports]
    text = "\n".join(_lines(reports, titles, columns, eps)) + "\n"
    write_atomically(out / "compare.md", f"{text}\n![](compare.png)\n".encode())
    _draw(reports, titles, columns, eps, out / "compare.png")
    return text


def _eps(reports: Sequence[Report], given: float | None) -> float | None:
    """Returns the ε to show, or None if no attack has one."""
    measured = sorted({a.eps for report in reports for a in report.attacks if a.eps is not None and a.norm == "linf"})
    if given is not None and given not in measured:
        known = ", ".join(f"{eps:g}" for eps in measured) or "none"
        raise ConfigError(f"--eps: {given:g} was not measured; measured values: {known}")
    return given or (FGSM_EPS if FGSM_EPS in measured else max(measured, default=None))


def _entries(report: Report, eps: float | None) -> Iterator[Entry]:
    """Yields the cells of a run in the order of the table."""
    yield Entry("clean", 100 * report.clean.accuracy, report.clean, "clean")
    for result in report.attacks:
        if result.eps is None or (result.eps == eps and result.norm == "linf"):
            paper = result.attack if result.threat == "transfer" and result.eps in (None, FGSM_EPS) else ""
            percent = 100 * result.rate.accuracy if result.rate else None
            yield Entry(f"{result.attack}, {result.threat.replace('_', ' ')}", percent, result.rate, paper)
    for robust in report.robust_accuracies:
        if robust.eps == eps and robust.norm == "linf":
            over = f"{robust.rate.examples:,} images" if robust.rate else "no attack"
            yield Entry(f"robust accuracy, {over}", 100 * robust.rate.accuracy if robust.rate else None, robust.rate)
    for name in dict.fromkeys(result.name for result in report.corruptions):
        rates = [result.rate.accuracy for result in report.corruptions if result.name == name]
        yield Entry(name.replace("_", " "), 100 * math.fsum(rates) / len(rates), None, name)


def _lines(
    reports: Sequence[Report], titles: Sequence[str], columns: Sequence[list[Entry]], eps: float | None
) -> Iterator[str]:
    head, cells = [""], {condition: [condition] for condition in _conditions(columns)}
    for report, title, entries in zip(reports, titles, columns, strict=True):
        by_name = {entry.condition: entry for entry in entries}
        paper = published(report.config)
        head += [title, f"paper's {paper[0]}"] if paper else [title]
        for condition, row in cells.items():
            entry = by_name.get(condition)
            row.append("–" if entry is None or entry.percent is None else f"{entry.percent:.2f}")
            if paper:
                row.append(f"{paper[1][entry.paper]:.2f}" if entry and entry.paper in paper[1] else "")
    attacks = "" if eps is None else f", attacks in L∞ at ε = {eps:g}"
    yield f"Accuracies are in %{attacks}; a corruption's value is the mean over severities."
    yield "–: not testable by this attack, or not measured. The paper uses transfer attacks and unknown severities."
    yield ""
    yield from table(head, list(cells.values()))
    yield ""
    for report, title in zip(reports, titles, strict=True):
        errors = report.corruption_errors
        relative = (
            f"; mCE {errors.mean:.3f} relative to {errors.baseline}" if errors and errors.mean is not None else ""
        )
        yield f"{title}: {described(report.config)}{relative}"


def _conditions(columns: Sequence[list[Entry]]) -> list[str]:
    return list(dict.fromkeys(entry.condition for entries in columns for entry in entries))


def _draw(
    reports: Sequence[Report], titles: Sequence[str], columns: Sequence[list[Entry]], eps: float | None, path: Path
) -> None:
    """Draws a group of bars per condition and a bar per run, with intervals; diamonds are the paper's results."""
    names = _conditions(columns)
    width = 0.8 / len(reports)
    figure = figure_of(max(8.0, 2 + 0.17 * len(names) * (1 + len(reports))), 6)
    axes = figure.subplots()
    for number, (report, title, entries) in enumerate(zip(reports, titles, columns, strict=True)):
        paper = published(report.config)
        place = {name: index + (number - (len(reports) - 1) / 2) * width for index, name in enumerate(names)}
        known = [(place[e.condition], e.percent) for e in entries if e.percent is not None]
        axes.bar([x for x, _ in known], [y for _, y in known], width, color=f"C{number}", label=title)
        rated = [(place[e.condition], e.rate) for e in entries if e.rate is not None]
        if rated:
            bars = intervals([rate for _, rate in rated])
            axes.errorbar([x for x, _ in rated], **bars, linestyle="none", color="black", linewidth=1)
        beside = [(place[e.condition], paper[1][e.paper]) for e in entries if paper and e.paper in paper[1]]
        if paper and beside:
            look = {"color": f"C{number}", "edgecolors": "black", "marker": "D", "zorder": 3}
            axes.scatter([x for x, _ in beside], [y for _, y in beside], **look, label=f"paper's {paper[0]}")
        for entry in entries:
            if entry.percent is None:
                axes.text(place[entry.condition], 1, "not testable", rotation=90, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(ylabel="accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.3, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(5, 2 * len(reports)))
    axes.set_title("robustness" if eps is None else f"robustness; attacks in L∞ at ε = {eps:g}")
    figure.savefig(path, dpi=120)
