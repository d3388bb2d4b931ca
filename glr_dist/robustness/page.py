"""A robustness report as a page of tables, in Markdown that can be read as it is. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glr_dist.robustness.report import AttackResult, Report, WorstCase

_EXPLAINED = {
    "random_sign": "random_sign is no attack but a control: random noise of the same size.",
    "lbfgs": "lbfgs looks for the least change in L2 that changes a prediction.",
}


def markdown(report: Report) -> str:
    """The report as a page of tables."""
    return "\n".join(_lines(report)) + "\n"


def described(settings: Mapping[str, Any]) -> str:
    """A run's configuration in a line."""
    model, noise, estimator = settings["model"], settings["noise"], settings["estimator"]
    law = "no noise" if noise["law"] == "none" else f"{noise['law']} noise {noise['scale']}"
    schedule = sorted(noise.get("schedule", {}).items(), key=lambda item: int(item[0]))
    law += "".join(f", {scale} after epoch {epoch}" for epoch, scale in schedule)
    hidden = "-".join(map(str, model["hidden"]))
    loss = settings["training"]["loss"]
    return f"{settings['data']['name']}, {hidden} {model['activation']} units, {loss}, {estimator['name']}, {law}"


def _lines(report: Report) -> Iterator[str]:
    votes = report.suite["inference"]["votes"]
    yield f"# Robustness of {report.run}"
    yield ""
    predicted = f"by the majority of {votes} noisy passes" if votes else "without noise"
    yield f"{described(report.settings)}; after epoch {report.epoch}; predictions {predicted}."
    yield "Accuracy in % with its 95 % interval (Wilson)."
    yield ""
    yield f"Clean: {report.clean} on {report.clean.examples:,} {report.suite['split']} images."
    if report.attacks:
        yield from ("", "## Attacks", "")
        yield from table(["attack", "threat model", "ε", "accuracy", "examples", ""], map(_attack_row, report.attacks))
        known = {result.attack for result in report.attacks}
        yield from ("", *(text for attack, text in _EXPLAINED.items() if attack in known))
    if report.worst_cases:
        yield from ("", "## Worst case", "")
        yield "The share of images that withstand every attack: the robust accuracy, as far as these attacks reach."
        yield ""
        yield from table(["norm", "ε", "accuracy", "examples", "attacks"], map(_worst_row, report.worst_cases))
    if report.corruptions:
        yield from ("", f"## Corruptions ({report.suite['corruptions']['constants']})", "")
        yield from _corruptions(report)


def _attack_row(result: AttackResult) -> list[str]:
    eps = "least" if result.eps is None else f"{result.eps:g}"
    if result.rate is None:
        return [_name(result), result.threat, eps, "–", "", f"not testable by this attack: {result.reason}"]
    notes = []
    if result.untested:
        notes.append(f"{result.untested} had no gradient and count as errors")
    if result.mean_length is not None:
        notes.append(f"mean L2 change {result.mean_length:.3f}")
    return [_name(result), result.threat, eps, str(result.rate), f"{result.rate.examples:,}", "; ".join(notes)]


def _name(result: AttackResult) -> str:
    return f"{result.attack} (L2)" if result.norm == "l2" and result.eps is not None else result.attack


def _worst_row(worst: WorstCase) -> list[str]:
    norm = {"linf": "L∞", "l2": "L2"}[worst.norm]
    if worst.rate is None:
        return [norm, f"{worst.eps:g}", "–", "", "none could test the network"]
    names = [label.rpartition("/")[0] for label in worst.attacks]
    return [norm, f"{worst.eps:g}", str(worst.rate), f"{worst.rate.examples:,}", ", ".join(names)]


def _corruptions(report: Report) -> Iterator[str]:
    errors = report.corruption_errors
    assert errors is not None
    severities = list(dict.fromkeys(result.severity for result in report.corruptions))
    rows = []
    for name in errors.by_name:
        rates = [result.rate.accuracy for result in report.corruptions if result.name == name]
        relative = errors.by_name[name]
        cells = [f"{100 * rate:.2f}" for rate in (*rates, math.fsum(rates) / len(rates))]
        rows.append([name, *cells, "–" if relative is None else f"{relative:.3f}"])
    yield from table(["corruption", *(f"severity {s}" for s in severities), "mean", "CE"], rows)
    widest = max((result.rate.high - result.rate.low) / 2 for result in report.corruptions)
    yield ""
    mean = "not defined, the baseline makes no error" if errors.mean is None else f"{errors.mean:.3f}"
    yield f"Mean corruption error relative to {errors.baseline}: {mean}. 95 % intervals: at most ± {100 * widest:.2f}."


def table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    """A Markdown table whose columns line up, so that it can be read as it is."""
    cells = [list(head), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "| " + " | ".join("-" * max(3, width) for width in widths) + " |"
