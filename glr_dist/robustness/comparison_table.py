"""The table of a comparison: one row per condition, one column per run and one for the paper's model of its kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glr_dist.robustness.page import described, table
from glr_dist.robustness.published import fgsm_eps, published
from glr_dist.robustness.rate import Rate
from glr_dist.robustness.report import Report


@dataclass(frozen=True)
class Entry:
    """One cell of the comparison.

    Attributes:
        condition: name of the row.
        accuracy: accuracy as a fraction; None if it could not be measured.
        rate: the accuracy with its interval, for a single measurement.
        paper: the paper's accuracy as a fraction, if it has one.
    """

    condition: str
    accuracy: float | None
    rate: Rate | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Column:
    """One run of the comparison.

    Attributes:
        title: name of the run, unique in the comparison.
        report: its report.
        model: name of the corresponding model in the paper; None if there is none.
        entries: its cells by condition.
    """

    title: str
    report: Report
    model: str | None
    entries: Mapping[str, Entry]


def column_of(title: str, report: Report, eps: float | None) -> Column:
    """Returns the column of a run, with attacks at one ε."""
    model, accuracies = published(report.config) or (None, {})
    entries = {entry.condition: entry for entry in _entries(report, eps, accuracies)}
    return Column(title, report, model, entries)


def conditions_of(columns: Sequence[Column]) -> list[str]:
    """Returns the rows of the comparison in order."""
    return list(dict.fromkeys(condition for column in columns for condition in column.entries))


def _entries(report: Report, eps: float | None, paper: Mapping[str, float]) -> Iterator[Entry]:
    """Yields the cells of a run in the order of the table."""

    def entry(condition: str, rate: Rate | None, column: str = "") -> Entry:
        known = paper[column] / 100 if column in paper else None
        return Entry(condition, rate.accuracy if rate else None, rate, known)

    published_eps = fgsm_eps(report.config)
    yield entry("clean", report.clean, "clean")
    for result in report.attacks:
        if result.eps is None or (result.eps == eps and result.norm == "linf"):
            column = result.attack if result.threat == "transfer" and result.eps in (None, published_eps) else ""
            column = "lbfgs" if column == "torch_lbfgs" else column
            yield entry(f"{result.attack}, {result.threat.replace('_', ' ')}", result.rate, column)
    for robust in report.robust_accuracies:
        if robust.eps == eps and robust.norm == "linf":
            over = f"{robust.rate.examples:,} images" if robust.rate else "no attack"
            yield entry(f"robust accuracy, {over}", robust.rate)
    for name in dict.fromkeys(result.name for result in report.corruptions):
        rates = [result.rate.accuracy for result in report.corruptions if result.name == name]
        known = paper[name] / 100 if name in paper else None
        yield Entry(name.replace("_", " "), math.fsum(rates) / len(rates), None, known)


def lines_of(columns: Sequence[Column], eps: float | None) -> Iterator[str]:
    """Yields the lines of the comparison in Markdown."""
    head = [""]
    rows = {condition: [condition] for condition in conditions_of(columns)}
    for column in columns:
        head += [column.title, f"paper's {column.model}"] if column.model else [column.title]
        for condition, row in rows.items():
            entry = column.entries.get(condition)
            row.append(_percent(entry.accuracy if entry else None, "–"))
            if column.model:
                row.append(_percent(entry.paper if entry else None, ""))
    attacks = "" if eps is None else f", attacks in L∞ at ε = {eps:g}"
    yield f"Accuracies are in %{attacks}; a corruption's value is the mean over severities."
    yield "–: not testable by this attack, or not measured. The paper uses transfer attacks and unknown severities."
    yield ""
    yield from table(head, list(rows.values()))
    yield ""
    for column in columns:
        errors = column.report.corruption_errors
        defined = errors is not None and errors.mean is not None
        relative = f"; mCE {errors.mean:.3f} relative to {errors.baseline}" if errors and defined else ""
        yield f"{column.title}: {described(column.report.config)}{relative}"


def json_of(columns: Sequence[Column], eps: float | None) -> dict[str, Any]:
    """Returns the comparison as JSON values, with accuracies as fractions."""
    runs = []
    for column in columns:
        cells = [
            {
                "condition": entry.condition,
                "accuracy": entry.accuracy,
                "low": entry.rate.low if entry.rate else None,
                "high": entry.rate.high if entry.rate else None,
                "examples": entry.rate.examples if entry.rate else None,
                "paper": entry.paper,
            }
            for entry in column.entries.values()
        ]
        identity = {"run": column.title, "epoch": column.report.epoch, "params_sha256": column.report.params_sha256}
        runs.append({**identity, "paper_model": column.model, "accuracies": cells})
    return {"report": columns[0].report.name, "eps": eps, "runs": runs}


def _percent(accuracy: float | None, missing: str) -> str:
    return missing if accuracy is None else f"{100 * accuracy:.2f}"
