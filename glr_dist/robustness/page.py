"""A robustness report as a Markdown page that is readable as plain text. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glr_dist.imported import is_import_path
from glr_dist.registry import ZOO
from glr_dist.robustness.report import AttackResult, Report, RobustAccuracy

_EXPLAINED = {
    "random_sign": "random_sign is a control, not an attack: random noise of the same size.",
    "torch_lbfgs": "torch_lbfgs is the paper's L-BFGS: one unbounded optimizer step, which says little.",
    "lbfgs": "lbfgs searches for the smallest L2 change that changes a prediction.",
}


def markdown(report: Report) -> str:
    """Returns the report as a page of tables."""
    return "\n".join(_lines(report)) + "\n"


def described(config: Mapping[str, Any]) -> str:
    """Returns one line that describes a run's config."""
    model, noise, estimator = config["model"], config["noise"], config["estimator"]
    law = "no noise" if noise["law"] == "none" else f"{noise['law']} noise {noise['scale']}"
    schedule = sorted(noise.get("schedule", {}).items(), key=lambda item: int(item[0]))
    law += "".join(f", {scale} after epoch {epoch}" for epoch, scale in schedule)
    name = model.get("name")
    if name in ZOO or is_import_path(name):
        network = name
    else:
        network = f"{'-'.join(map(str, model['hidden']))} {model['activation']} units"
    loss = config["training"]["loss"]
    return f"{config['data']['name']}, {network}, {loss}, {estimator['name']}, {law}"


def _lines(report: Report) -> Iterator[str]:
    votes = report.suite.inference.votes
    yield f"# Robustness of {report.run} ({report.name})"
    yield ""
    predicted = f"by majority vote of {votes} noisy passes" if votes else "without noise"
    chosen = ", the best on validation images" if report.checkpoint == "best" else ""
    yield f"{described(report.config)}; after epoch {report.epoch}{chosen}; predictions {predicted}."
    yield "Accuracies are in %, with 95 % intervals (Wilson)."
    yield ""
    right = " that the surrogate classifies correctly" if report.suite.surrogate_right else ""
    yield f"Clean: {report.clean} on {report.clean.examples:,} {report.suite.split} images{right}."
    if report.attacks:
        yield from ("", "## Attacks", "")
        yield from table(
            ["attack", "threat model", "ε", "accuracy", "examples", "note"], map(_attack_row, report.attacks)
        )
        known = {result.attack for result in report.attacks}
        yield from ("", *(text for attack, text in _EXPLAINED.items() if attack in known))
    if report.robust_accuracies:
        yield from ("", "## Robust accuracy", "")
        yield "Fraction of images that stay correct under every attack: an upper bound of the true robust accuracy."
        yield ""
        head = ["norm", "ε", "robust accuracy", "examples", "attacks"]
        yield from table(head, map(_robust_row, report.robust_accuracies))
    if report.corruptions:
        yield from ("", f"## Corruptions ({report.suite.corruptions.constants})", "")
        yield from _corruptions(report)


def _attack_row(result: AttackResult) -> list[str]:
    unbounded = "none" if result.attack == "torch_lbfgs" else "minimal"
    eps = unbounded if result.eps is None else f"{result.eps:g}"
    if result.rate is None:
        return [_name(result), result.threat, eps, "–", "", f"not testable by this attack: {result.reason}"]
    notes = []
    if result.untested:
        notes.append(f"{result.untested} without a gradient count as errors")
    if result.mean_l2_norm is not None:
        notes.append(f"mean L2 norm {result.mean_l2_norm:.3f}")
    return [_name(result), result.threat, eps, str(result.rate), f"{result.rate.examples:,}", "; ".join(notes)]


def _name(result: AttackResult) -> str:
    return f"{result.attack} (L2)" if result.norm == "l2" and result.eps is not None else result.attack


def _robust_row(robust: RobustAccuracy) -> list[str]:
    norm = {"linf": "L∞", "l2": "L2"}[robust.norm]
    if robust.rate is None:
        return [norm, f"{robust.eps:g}", "–", "", "no attack can test the network"]
    names = [label.rpartition("/")[0] for label in robust.attacks]
    return [norm, f"{robust.eps:g}", str(robust.rate), f"{robust.rate.examples:,}", ", ".join(names)]


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
    mean = "undefined, the baseline makes no errors" if errors.mean is None else f"{errors.mean:.3f}"
    yield f"Mean corruption error relative to {errors.baseline}: {mean}. 95 % intervals: ± {100 * widest:.2f} or less."


def table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    """Yields the lines of a Markdown table with aligned columns."""
    cells = [list(head), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "| " + " | ".join("-" * max(3, width) for width in widths) + " |"
