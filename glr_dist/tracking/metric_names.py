"""Names of metrics: from the keys of a run's records to the names that MLflow shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from glr_dist.robustness.report import Report

_NAMES = {
    "train_loss": "train/loss",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
}
_LONGEST = 250  # characters that MLflow accepts
_NOT_METRICS = ("epoch", "time")  # the step and the timestamp of the metrics


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of `metrics.jsonl`, or of a summary, by their names in MLflow.

    Sites keep their names (`gradient_norm/1`, `noise_scale/1`), actors are numbered (`actor_busy_share/0`).
    """
    numbers: dict[str, float] = {}
    for key, value in record.items():
        for name, number in (
            [(f"{key}/{i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [(key, value)]
        ):
            if isinstance(number, int | float) and not isinstance(number, bool) and key not in _NOT_METRICS:
                numbers[_NAMES.get(name, name)] = float(number)
    names = valid_names(numbers)
    return {names[name]: number for name, number in numbers.items()}


def report_curves(report: Report) -> dict[str, list[tuple[int, float]]]:
    """Returns the curves of a robustness report by their names in MLflow: steps and accuracies.

    MLflow draws a metric against its step, a whole number: the severity, or 1000 ε. Step 0 is the clean accuracy.
    Examples are `robust_by_1000_eps/paper-test/fgsm_transfer` and `corruption_by_severity/paper-test/glass_blur`.
    """
    curves: dict[str, dict[int, float]] = {}

    def add(kind: str, name: str, step: int, accuracy: float) -> None:
        curves.setdefault(f"{kind}/{report.name}/{name}", {0: report.clean.accuracy})[step] = accuracy

    for a in report.attacks:
        if a.eps is not None and a.rate is not None:
            name = f"{a.attack}{'_l2' if a.norm == 'l2' else ''}_{a.threat}"
            add("robust_by_1000_eps", name, round(1000 * a.eps), a.rate.accuracy)
    for r in report.robust_accuracies:
        if r.rate is not None:  # the last entry of an ε covers the most attacks
            add("robust_by_1000_eps", f"all_attacks_{r.norm}", round(1000 * r.eps), r.rate.accuracy)
    for c in report.corruptions:
        add("corruption_by_severity", c.name, c.severity, c.rate.accuracy)
    return {name: sorted(points.items()) for name, points in curves.items()}


def valid_names(names: Iterable[str]) -> dict[str, str]:
    """Maps each name of a metric or parameter to a distinct name that MLflow accepts.

    Characters that MLflow refuses become underscores. Where that makes two names equal, the later ones are numbered.
    """
    valid: dict[str, str] = {}
    for name in names:
        number = 1
        candidate = _valid(name)
        while candidate in valid.values():
            number += 1
            candidate = f"{_valid(name)[: _LONGEST - 5]} {number}"
        valid[name] = candidate
    return valid


def _valid(name: str) -> str:
    name = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII).strip("/")
    # MLflow takes names for paths, and refuses those that have another spelling.
    parts = [part if part not in (".", "..") else part.replace(".", "_") for part in name.split("/") if part]
    return "/".join(parts)[:_LONGEST].rstrip("/") or "_"
