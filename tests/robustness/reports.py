"""Builds reports from handwritten measurements."""

from __future__ import annotations

from typing import Any

from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.report import Report
from glr_dist.robustness.scoring import report_of
from glr_dist.robustness.suite import Suite, load_suite

CONFIG = {
    "data": {"name": "digits"},
    "model": {"hidden": [8], "activation": "threshold"},
    "noise": {"law": "gaussian", "scale": 0.5},
    "estimator": {"name": "conditional"},
    "training": {"loss": "zero_one"},
}


def suite_of(*attacks: str, corruptions: str = "[]", severities: str = "[1]") -> Suite:
    overrides = [f"attacks=[{', '.join(attacks)}]", f"corruptions.names={corruptions}"]
    return load_suite("quick", [*overrides, f"corruptions.severities={severities}"])


def report(suite: Suite, examples: int, config: dict[str, Any] = CONFIG, **measurements: Measurement) -> Report:
    """Builds a report from one measurement per label; `clean` is all correct by default."""
    blocks = {"clean": [whole("1" * examples)], **{label: [each] for label, each in measurements.items()}}
    return report_of_blocks(suite, examples, blocks, config)


def report_of_blocks(
    suite: Suite, examples: int, blocks: dict[str, list[Measurement]], config: dict[str, Any] = CONFIG
) -> Report:
    """Builds a report from the measurements of all blocks by label."""
    conditions = conditions_of(suite, examples)
    return report_of(suite, conditions, blocks, run="run", config=config, epoch=3, params_sha256="0f")


def whole(correct: str) -> Measurement:
    """Returns a measurement whose images were all attacked."""
    return Measurement(correct, "1" * len(correct))


FGSM = "{name: fgsm, eps: 0.1, threats: [white_box, transfer]}"
SQUARE = "{name: square, eps: 0.1, examples: 4}"
NOISE = "{name: random_sign, eps: 0.1}"
