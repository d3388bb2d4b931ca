"""Several runs side by side: one table and one plot of their robustness reports, the paper's figures beside them."""

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
from glr_dist.robustness.report import Rate, Report, read_report


class Entry(NamedTuple):
    """One figure of one run, in %; `rate` holds it with its interval where it has one, None where it does not exist."""

    condition: str
    percent: float | None
    rate: Rate | None = None
    paper: str = ""  # the name of the paper's column that it stands beside


def compare(folders: Sequence[Path], out: Path, eps: float | None = None) -> str:
    """Sets the reports of runs side by side and writes `compare.md` and `compare.png` to a folder.

    Args:
        folders: of runs that were evaluated by one suite.
        out: the folder.
        eps: of the attacks that are shown; by default the paper's 0.13, or else the largest one that was measured.

    Returns:
        The table.

    Raises:
        ConfigError: a run was not evaluated, or by another suite, or not at this ε.
        OSError: the folder cannot be written.
    """
    reports = [read_report(folder) for folder in folders]
    for folder, report in zip(folders, reports, strict=True):
        for key in reports[0].suite.keys() | report.suite.keys():
            if report.suite.get(key) != reports[0].suite.get(key):
                raise ConfigError(f"{folder}: was evaluated by another suite than {folders[0]}: '{key}' differs")
        for key in ("name", "split_seed", "validation", "test"):
            if (value := report.settings["data"][key]) != (first := reports[0].settings["data"][key]):
                raise ConfigError(f"{folder}: has other data than {folders[0]}: data.{key} is {value!r}, not {first!r}")
    eps = _eps(reports, eps)
    names = [report.run for report in reports]
    # Folders of one name take the name of the folder that they are in.
    titles = [
        f"{f.absolute().parent.name}/{n}" if names.count(n) > 1 else n for f, n in zip(folders, names, strict=True)
    ]
    columns = [list(_entries(report, eps)) for report in reports]
    text = "\n".join(_lines(reports, titles, columns, eps)) + "\n"
    write_atomically(out / "compare.md", f"{text}\n![](compare.png)\n".encode())
    _draw(reports, titles, columns, eps, out / "compare.png")
    return text


def _eps(reports: Sequence[Report], given: float | None) -> float | None:
    """The ε that is shown, None where no attack has one."""
    measured = sorted({a.eps for report in reports for a in report.attacks if a.eps is not None and a.norm == "linf"})
    if given is not None and given not in measured:
        known = ", ".join(f"{eps:g}" for eps in measured) or "none"
        raise ConfigError(f"--eps: {given:g} was not measured; measured are {known}")
    return given or (FGSM_EPS if FGSM_EPS in measured else max(measured, default=None))


def _entries(report: Report, eps: float | None) -> Iterator[Entry]:
    """The figures of a run, in the order of the table."""
    yield Entry("clean", 100 * report.clean.accuracy, report.clean, "clean")
    for result in report.attacks:
        if result.eps is None or (result.eps == eps and result.norm == "linf"):
            paper = result.attack if result.threat == "transfer" and result.eps in (None, FGSM_EPS) else ""
            percent = 100 * result.rate.accuracy if result.rate else None
            yield Entry(f"{result.attack}, {result.threat.replace('_', ' ')}", percent, result.rate, paper)
    for worst in report.worst_cases:
        if worst.eps == eps and worst.norm == "linf":
            over = f"{worst.rate.examples:,} images" if worst.rate else "no attack"
            yield Entry(f"worst case, {over}", 100 * worst.rate.accuracy if worst.rate else None, worst.rate)
    for name in dict.fromkeys(result.name for result in report.corruptions):
        rates = [result.rate.accuracy for result in report.corruptions if result.name == name]
        yield Entry(name.replace("_", " "), 100 * math.fsum(rates) / len(rates), None, name)


def _lines(
    reports: Sequence[Report], titles: Sequence[str], columns: Sequence[list[Entry]], eps: float | None
) -> Iterator[str]:
    head, cells = [""], {condition: [condition] for condition in _conditions(columns)}
    for report, title, entries in zip(reports, titles, columns, strict=True):
        by_name = {entry.condition: entry for entry in entries}
        paper = published(report.settings)
        head += [title, f"paper's {paper[0]}"] if paper else [title]
        for condition, row in cells.items():
            entry = by_name.get(condition)
            row.append("–" if entry is None or entry.percent is None else f"{entry.percent:.2f}")
            if paper:
                row.append(f"{paper[1][entry.paper]:.2f}" if entry and entry.paper in paper[1] else "")
    attacks = "" if eps is None else f", attacks in L∞ at ε = {eps:g}"
    yield f"Accuracy in %{attacks}; corruptions: mean over severities."
    yield "–: not testable by this attack, or not measured. The paper's attacks are transfers, its severities unknown."
    yield ""
    yield from table(head, list(cells.values()))
    yield ""
    for report, title in zip(reports, titles, strict=True):
        errors = report.corruption_errors
        relative = (
            f"; mCE {errors.mean:.3f} relative to {errors.baseline}" if errors and errors.mean is not None else ""
        )
        yield f"{title}: {described(report.settings)}{relative}"


def _conditions(columns: Sequence[list[Entry]]) -> list[str]:
    return list(dict.fromkeys(entry.condition for entries in columns for entry in entries))


def _draw(
    reports: Sequence[Report], titles: Sequence[str], columns: Sequence[list[Entry]], eps: float | None, path: Path
) -> None:
    """A group of bars for each condition, a bar for each run, with intervals; diamonds for the paper's figures."""
    names = _conditions(columns)
    width = 0.8 / len(reports)
    figure = figure_of(max(8.0, 2 + 0.17 * len(names) * (1 + len(reports))), 6)
    axes = figure.subplots()
    for number, (report, title, entries) in enumerate(zip(reports, titles, columns, strict=True)):
        paper = published(report.settings)
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
