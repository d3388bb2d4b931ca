"""Objectives of a search: names of metrics on the validation images, and their direction. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from glr_dist.errors import ConfigError
from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.scoring import report_of
from glr_dist.robustness.suite import Suite
from glr_dist.text import hint

# Metrics of the noise-free network on all validation images, with their keys in the record of each epoch.
EVERY_EPOCH = {"validation/accuracy": "validation_accuracy", "validation/loss": "validation_loss"}
_MINIMIZED = ("validation/loss", "corruption/mce")


def direction(name: str) -> Literal["minimize", "maximize"]:
    """Returns the direction of an objective, in Optuna's words."""
    return "minimize" if name in _MINIMIZED else "maximize"


def cost(name: str, value: float) -> float:
    """Returns the value of an objective with the sign that makes lower better."""
    return value if direction(name) == "minimize" else -value


def epoch_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the objectives in an epoch's record (a line of `metrics.jsonl`)."""
    return {name: record[key] for name, key in EVERY_EPOCH.items() if key in record}


def suite_metrics(suite: Suite) -> list[str]:
    """Returns the names of the metrics that a suite reports when every attack is applicable."""
    conditions = conditions_of(suite, 1)
    correct = [Measurement(correct="1", tested="1", baseline="0")]
    measurements = {condition.label: correct for condition in conditions}
    return list(report_of(suite, conditions, measurements, run="", config={}, epoch=0, params_sha256="").metrics())


def check_objectives(names: Sequence[str], suite: Suite | None) -> None:
    """Refuses objectives that no trial can report.

    Args:
        names: the objectives.
        suite: the suite that trials are evaluated with, if any.

    Raises:
        ConfigError: an objective is unknown or repeated.
    """
    known = [*EVERY_EPOCH, *(suite_metrics(suite) if suite is not None else ())]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ConfigError(f"tune.objectives: '{name}' is listed twice")
        if name in known:
            continue
        if suite is None and name.split("/")[0] in ("robust", "corruption", "clean"):
            raise ConfigError(f"tune.objectives: '{name}' needs a suite in tune.robustness that measures it")
        raise ConfigError(f"tune.objectives: '{name}' is not measured by this search; {hint(name, known)}")
