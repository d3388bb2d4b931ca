"""A robustness report as a table that MLflow's pages show."""

from __future__ import annotations

import json
from typing import Any

from glr_dist.robustness.report import Rate, Report

PATH = "robustness/table.json"
TAG = ("mlflow.loggedArtifacts", json.dumps([{"path": PATH, "type": "table"}]))
_COLUMNS = ["condition", "kind", "strength", "accuracy", "low", "high", "examples", "note"]


def table_of(report: Report) -> dict[str, Any]:
    """A row for each condition, in the form that MLflow gives its tables; an attack's strength is its ε."""
    rows = [_row("clean", "clean", None, report.clean)]
    for a in report.attacks:
        rows.append(_row(f"{a.attack} ({a.norm})", a.threat, a.eps, a.rate, a.reason or ""))
    for w in report.worst_cases:
        rows.append(_row(f"worst case ({w.norm})", "worst case", w.eps, w.rate, ", ".join(w.attacks)))
    for c in report.corruptions:
        rows.append(_row(c.name, "corruption", c.severity, c.rate))
    return {"columns": _COLUMNS, "data": rows}


def _row(name: str, kind: str, strength: float | None, rate: Rate | None, note: str = "") -> list[Any]:
    figures = (
        [None] * 4 if rate is None else [*(round(x, 4) for x in (rate.accuracy, rate.low, rate.high)), rate.examples]
    )
    return [name, kind, strength, *figures, note]
