"""Meaning of the section `robustness` of a configuration: its suites, certificates and metrics. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from glr_dist.config import Robustness, build
from glr_dist.errors import ConfigError
from glr_dist.robustness.certificates.report import certificates_name
from glr_dist.robustness.certificates.settings import AnyCertification, Certification, kind_of
from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.metric_names import report_metrics
from glr_dist.robustness.report import Report
from glr_dist.robustness.scoring import report_of
from glr_dist.robustness.suite import Suite, load_suite

# Certificates while a run trains are few, and unattacked: `glr-dist certify` checks those of the finished run.
_FEW: dict[str, dict[str, Any]] = {
    "l2": {"examples": 100, "n": 1000, "attack": {"examples": 0}},
    "linf": {"examples": 100, "nodes": 0},
}
_SECTION = "robustness"


class TrainingSettings(NamedTuple):
    """Evaluations of a run.

    Attributes:
        every: epochs between two evaluations while it trains; None: there are none.
        suite: the suite of these evaluations.
        certification: settings of the certificates beside them, if any.
        at_end: the suite that evaluates the finished run, if any.
    """

    every: int | None
    suite: Suite | None
    certification: AnyCertification | None
    at_end: Suite | None

    def metrics(self) -> list[str]:
        """Returns the names of the metrics of an evaluation while the run trains, if every attack is applicable."""
        if self.suite is None:
            return []
        return [*report_metrics(perfect_report(self.suite)), *_certificate_metrics(self.certification)]


def training_settings(section: Robustness) -> TrainingSettings:
    """Returns the evaluations that the section asks for.

    Raises:
        ConfigError: a suite or a field does not exist, or its value is not allowed; names the field.
    """
    at_end = None if section.at_end is None else _suite(section.at_end, "at_end")
    if section.every is None:
        return TrainingSettings(None, None, None, at_end)
    changes = {"split": section.split, **({} if section.examples is None else {"examples": section.examples})}
    suite = _suite(section.suite, "suite").model_copy(update=changes)
    certification = None if section.certify is None else _certification(section.certify, section.split)
    return TrainingSettings(section.every, suite, certification, at_end)


def perfect_report(suite: Suite) -> Report:
    """Returns the report of a suite on a network that is right under all of its conditions."""
    conditions = conditions_of(suite, 1)
    correct = [Measurement(correct="1", tested="1", baseline="0")]
    measurements = {condition.label: correct for condition in conditions}
    return report_of(suite, conditions, measurements, run="", config={}, epoch=0, params_sha256="")


def _suite(given: str | Mapping[str, Any], key: str) -> Suite:
    field = f"{_SECTION}.{key}"
    suite = load_suite(given, field=field) if isinstance(given, str) else build(Suite, given, f"{field}.")
    conditions_of(suite, 1)  # refuses a condition that occurs twice
    return suite


def _certification(given: Mapping[str, Any], split: str) -> AnyCertification:
    field = f"{_SECTION}.certify"
    norm = given.get("norm", "l2")
    kind = kind_of(norm, given, f"{field}.")
    if "split" in given:
        raise ConfigError(f"{field}.split: is that of {_SECTION}.split; leave it out")
    return build(kind, {**_FEW[norm], **given, "split": split}, f"{field}.")


def _certificate_metrics(settings: AnyCertification | None) -> list[str]:
    """Returns the names of the metrics of certificates, without those of an attack on them."""
    if settings is None:
        return []
    group = f"certified/{certificates_name(settings, 'newest').replace('-test', '')}"
    if isinstance(settings, Certification):
        return [f"{group}/{name}" for name in ("clean", "average_radius", *(f"r_{r:g}" for r in settings.radii))]
    return [f"{group}/{name}" for name in ("clean", *(f"eps_{eps:g}" for eps in settings.eps))]
