"""The names of metrics: one table from what a run writes to what a tracking server shows."""

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
_NO_METRICS = ("epoch", "time")  # the step and the timestamp of the others


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl`, or of a summary, by their names on the server.

    Sites keep their names (`gradient_norm/1`, `noise_scale/1`), actors have numbers (`actor_busy_share/0`).
    """
    found: dict[str, float] = {}
    for key, value in record.items():
        for name, number in (
            [(f"{key}/{i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [(key, value)]
        ):
            if isinstance(number, int | float) and not isinstance(number, bool) and key not in _NO_METRICS:
                found[allowed(_NAMES.get(name, name))] = float(number)
    return found


def allowed(name: str) -> str:
    """A name of a metric or parameter in the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII).strip("/")
