"""Objectives of a search: names of metrics on the validation images, and their direction. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from glr_dist.config import Robustness
from glr_dist.errors import ConfigError
from glr_dist.robustness.suite import Suite
from glr_dist.robustness.training_settings import perfect_report, training_settings
from glr_dist.text import hint

# Metrics of the noise-free network on all validation images, with their keys in the record of each epoch.
EVERY_EPOCH = {"validation/accuracy": "validation_accuracy", "validation/loss": "validation_loss"}
_EVALUATED = ("robust", "corruption", "clean", "certified")  # the groups of metrics of robustness


def direction(name: str) -> Literal["minimize", "maximize"]:
    """Returns the direction of an objective, in Optuna's words."""
    minimized = name == "validation/loss" or (name.startswith("corruption/") and name.endswith("/mce"))
    return "minimize" if minimized else "maximize"


def cost(name: str, value: float) -> float:
    """Returns the value of an objective with the sign that makes lower better."""
    return value if direction(name) == "minimize" else -value


def epoch_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the objectives in an epoch's record (a line of `metrics.jsonl`).

    Metrics of robustness stand there under their own names, after the epochs that `robustness.every` evaluates.
    """
    found = {name: record[key] for name, key in EVERY_EPOCH.items() if key in record}
    return found | {name: value for name, value in record.items() if is_evaluated(name)}


def is_evaluated(name: str) -> bool:
    """Returns whether a name is that of a metric of robustness."""
    return name.partition("/")[0] in _EVALUATED


def suite_metrics(suite: Suite) -> list[str]:
    """Returns the names of the metrics that a suite reports when every attack is applicable."""
    return list(perfect_report(suite).metrics())


def training_metrics(section: Robustness) -> list[str]:
    """Returns the names of the metrics that `robustness.every` reports while a run trains."""
    return training_settings(section).metrics()


def check_objectives(names: Sequence[str], suite: Suite | None, section: Robustness) -> None:
    """Refuses objectives that no trial can report.

    Args:
        names: the objectives.
        suite: the suite that trials are evaluated with, if any.
        section: the section `robustness` of the configuration: the evaluations while a trial trains.

    Raises:
        ConfigError: an objective is unknown or repeated, or is measured on test images.
    """
    trained = training_metrics(section)
    known = [*EVERY_EPOCH, *(suite_metrics(suite) if suite is not None else ()), *trained]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ConfigError(f"tune.objectives: '{name}' is listed twice")
        if name in trained and section.split == "test":
            raise ConfigError(f"tune.objectives: '{name}' is measured on test images; use robustness.split: validation")
        if name in known:
            continue
        if suite is None and not trained and is_evaluated(name):
            raise ConfigError(
                f"tune.objectives: '{name}' needs a suite in tune.robustness that measures it, or robustness.every"
            )
        raise ConfigError(f"tune.objectives: '{name}' is not measured by this search; {hint(name, known)}")
