"""Reports made of outcomes by hand."""

from __future__ import annotations

from typing import Any

from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.outcome import Outcome
from glr_dist.robustness.report import Report, report_of
from glr_dist.robustness.suite import Suite, load_suite

SETTINGS = {
    "data": {"name": "digits"},
    "model": {"hidden": [8], "activation": "threshold"},
    "noise": {"law": "gaussian", "scale": 0.5},
    "estimator": {"name": "conditional"},
    "training": {"loss": "zero_one"},
}


def suite_of(*attacks: str, corruptions: str = "[]", severities: str = "[1]") -> Suite:
    overrides = [f"attacks=[{', '.join(attacks)}]", f"corruptions.names={corruptions}"]
    return load_suite("quick", [*overrides, f"corruptions.severities={severities}"])


def report(suite: Suite, examples: int, settings: dict[str, Any] = SETTINGS, **outcomes: Outcome) -> Report:
    """Of outcomes by label; `clean` is all right by default."""
    found = {"clean": Outcome("1" * examples, "1" * examples), **outcomes}
    conditions = conditions_of(suite, examples)
    return report_of("run", settings, 3, "0f", suite, conditions, {label: [found[label]] for label in found})


def whole(correct: str) -> Outcome:
    return Outcome(correct, "1" * len(correct))


FGSM = "{name: fgsm, eps: 0.1, threats: [white_box, transfer]}"
SQUARE = "{name: square, eps: 0.1, examples: 4}"
NOISE = "{name: random_sign, eps: 0.1}"
