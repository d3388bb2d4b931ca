"""A robustness report as a table that MLflow's pages show."""

from __future__ import annotations

import json
from typing import Any

from glr_dist.robustness.rate import Rate
from glr_dist.robustness.report import Report

PATH = "robustness/table.json"
TAG = ("mlflow.loggedArtifacts", json.dumps([{"path": PATH, "type": "table"}]))
_COLUMNS = ["condition", "kind", "strength", "accuracy", "low", "high", "examples", "note"]


def table_of(report: Report) -> dict[str, Any]:
    """Returns one row per condition, in MLflow's format of tables; the strength of an attack is its ε."""
    rows = [_row("clean", "clean", None, report.clean)]
    for attack in report.attacks:
        rows.append(
            _row(f"{attack.attack} ({attack.norm})", attack.threat, attack.eps, attack.rate, attack.reason or "")
        )
    for robust in report.robust_accuracies:
        rows.append(
            _row(f"robust accuracy ({robust.norm})", "all attacks", robust.eps, robust.rate, ", ".join(robust.attacks))
        )
    for corruption in report.corruptions:
        rows.append(_row(corruption.name, "corruption", corruption.severity, corruption.rate))
    return {"columns": _COLUMNS, "data": rows}


def _row(name: str, kind: str, strength: float | None, rate: Rate | None, note: str = "") -> list[Any]:
    if rate is None:
        return [name, kind, strength, *[None] * 4, note]
    return [name, kind, strength, *(round(x, 4) for x in (rate.accuracy, rate.low, rate.high)), rate.examples, note]
