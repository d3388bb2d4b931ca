"""Names of metrics: from the keys of a run's records to the names that MLflow shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAMES = {
    "train_loss": "train/loss",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
}
_NOT_METRICS = ("epoch", "time")  # the step and the timestamp of the metrics


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of `metrics.jsonl`, or of a summary, by their names in MLflow.

    Sites keep their names (`gradient_norm/1`, `noise_scale/1`), actors are numbered (`actor_busy_share/0`).
    """
    metrics: dict[str, float] = {}
    for key, value in record.items():
        for name, number in (
            [(f"{key}/{i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [(key, value)]
        ):
            if isinstance(number, int | float) and not isinstance(number, bool) and key not in _NOT_METRICS:
                metrics[valid_name(_NAMES.get(name, name))] = float(number)
    return metrics


def valid_name(name: str) -> str:
    """Returns the name of a metric or parameter with an underscore for each character that MLflow refuses."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII).strip("/")
