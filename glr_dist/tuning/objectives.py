"""What a search is for: names of figures on the validation images, and which way is better. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from glr_dist.errors import ConfigError
from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.outcome import Outcome
from glr_dist.robustness.report import report_of
from glr_dist.robustness.suite import Suite

# Of the noise-free network on all validation images: in the record of each epoch.
EVERY_EPOCH = {"validation/accuracy": "validation_accuracy", "validation/loss": "validation_loss"}
_LESS_IS_BETTER = ("validation/loss", "corruption/mce")


def direction(name: str) -> Literal["minimize", "maximize"]:
    """Which way is better, as Optuna says it: "minimize" or "maximize"."""
    return "minimize" if name in _LESS_IS_BETTER else "maximize"


def better_first(name: str, value: float) -> float:
    """A number that is less for a better value."""
    return value if direction(name) == "minimize" else -value


def of_record(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch's record."""
    return {name: record[key] for name, key in EVERY_EPOCH.items()}


def of_suite(suite: Suite) -> list[str]:
    """The names that the report of a suite will have, if every attack can test the network."""
    conditions = conditions_of(suite, 1)
    outcomes = {condition.label: [Outcome(correct="1", tested="1", baseline="0")] for condition in conditions}
    return list(report_of("", {}, 0, "", suite, conditions, outcomes).metrics())


def check(names: Sequence[str], suite: Suite | None) -> None:
    """Refuses objectives that no trial will have.

    Raises:
        ConfigError: names the objective and those that there are.
    """
    known = [*EVERY_EPOCH, *(of_suite(suite) if suite is not None else ())]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ConfigError(f"tune.objectives: '{name}' stands twice")
        if name in known:
            continue
        if suite is None and name.split("/")[0] in ("robust", "corruption", "clean"):
            raise ConfigError(f"tune.objectives: '{name}' needs a suite in tune.robustness that measures it")
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"tune.objectives: '{name}' is not measured here; {hint}")
