"""Results of a reproduction: accuracies of each model over its seeds, and of backpropagation at equal clean accuracy.

All accuracies are fractions. A condition is a row of `glr-dist compare`, such as "fgsm, transfer" or "glass blur".
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from glr_dist.config import Config
from glr_dist.robustness.certificates.files import certificate_names, read_certificates
from glr_dist.robustness.comparison_table import column_of
from glr_dist.robustness.published import fgsm_eps
from glr_dist.robustness.report import Report
from glr_dist.runs import RunFolder

CLEAN = "clean"
_CURVE = re.compile(
    r"(?P<kind>clean|robust|corruption)/curve-test/"
    r"(?P<name>.+?)(_(?P<threat>transfer))?(_eps_(?P<eps>[^_]+)|_s\d)?$"
)

Point = dict[str, float]  # accuracy by condition, after one epoch


@dataclass(frozen=True)
class SeedResult:
    """One finished run.

    Attributes:
        seed: its seed.
        params_sha256: digest of its network.
        final: accuracy of the finished network by condition, and its certified accuracies.
        curve: accuracies along the training on the images of the curves, oldest first, with the `epoch`.
        validation: accuracy of the finished network on the validation images; None if it was not measured.
        equal: accuracies of backpropagation of this seed at the clean accuracy of the curve's last point; empty if it
            does not pass that accuracy, None if it was not trained with this seed.
    """

    seed: int
    params_sha256: str
    final: Point
    curve: list[Point]
    validation: float | None = None
    equal: Point | None = None


@dataclass(frozen=True)
class ModelResult:
    """The finished runs of one model.

    Attributes:
        model: name of its configuration file.
        value: the value of the setting that the reproduction varies, as text, or "".
        title: name of the model in the paper, or "".
        backprop: True for backpropagation without noise in the network.
        input_noise: the setting `noise.input`.
        published: the paper's accuracy by condition.
        seeds: the runs.
    """

    model: str
    value: str
    title: str
    backprop: bool
    input_noise: dict[str, Any] | None
    published: Point
    seeds: list[SeedResult]

    @property
    def name(self) -> str:
        """The model and the value, such as "lrt 0.3"."""
        return f"{self.model} {self.value}".rstrip()

    @property
    def reference(self) -> bool:
        """True for backpropagation without any noise."""
        return self.backprop and self.input_noise is None

    @property
    def best(self) -> SeedResult | None:
        """The seed with the highest accuracy on validation images; None for a single seed, or if one lacks it."""
        found = [(seed.validation, seed) for seed in self.seeds if seed.validation is not None]
        if len(self.seeds) < 2 or len(found) < len(self.seeds):
            return None
        return max(found, key=lambda pair: pair[0])[1]

    def mean(self, condition: str) -> float | None:
        """Returns the mean over the seeds; None if a seed lacks the condition."""
        values = [seed.final.get(condition) for seed in self.seeds]
        found = [value for value in values if value is not None]
        return statistics.fmean(found) if found and len(found) == len(values) else None

    def deviation(self, condition: str) -> float | None:
        """Returns the standard deviation over the seeds (n - 1); None for a single seed."""
        if len(self.seeds) < 2 or self.mean(condition) is None:
            return None
        return statistics.stdev(seed.final[condition] for seed in self.seeds)

    def equal(self, condition: str) -> tuple[float, float] | None:
        """Returns backpropagation at equal clean accuracy, and what this model gains over it: means over the seeds.

        Both are measured on the images of the curves, and over the seeds that backpropagation was trained with. None if
        it does not pass the accuracy of each.
        """
        compared = [(seed, seed.equal) for seed in self.seeds if seed.equal is not None]
        pairs = [(equal[condition], seed.curve[-1][condition]) for seed, equal in compared if condition in equal]
        return _means(pairs) if pairs and len(pairs) == len(compared) else None

    def gain(self, other: ModelResult, condition: str) -> tuple[float, float] | None:
        """Returns the accuracy of another model, and what this one gains over it: means over the seeds of both.

        None if no seed has the condition in both.
        """
        theirs = {seed.seed: seed.final.get(condition) for seed in other.seeds}
        pairs = [
            (bp, own)
            for seed in self.seeds
            if (bp := theirs.get(seed.seed)) is not None and (own := seed.final.get(condition)) is not None
        ]
        return _means(pairs) if pairs else None


def seed_result(folder: RunFolder, report: Report, config: Config) -> SeedResult:
    """Returns the result of a finished run.

    Raises:
        ConfigError: a certificate cannot be read.
    """
    eps = fgsm_eps(report.config)
    entries = column_of(folder.path.name, report, eps).entries.values()
    final = {
        e.condition: e.accuracy for e in entries if e.accuracy is not None and not e.condition.startswith("robust")
    }
    for name in certificate_names(folder.path):
        certificates = read_certificates(folder.path, name)
        if certificates.params_sha256 == report.params_sha256:
            found = certificates.metrics()
            final |= {key.replace("/", " "): found[key] for key in found if re.search(r"/(r|eps)_[^/]+$", key)}
    records = list(folder.metrics())
    curve = [point for record in records if (point := curve_point(record, eps))]
    validation = records[-1].get("validation_accuracy") if records else None
    return SeedResult(config.seed, report.params_sha256, final, curve, validation)


def curve_point(record: Mapping[str, Any], eps: float) -> Point:
    """Returns the accuracies that an epoch's record has, by condition, and its `epoch`; empty if it has none."""
    found: dict[str, list[float]] = {}
    for key, value in record.items():
        match = _CURVE.match(key)
        if match is None or (match["eps"] is not None and float(match["eps"]) != eps) or match["name"] == "mce":
            continue
        if match["kind"] == "robust" and match["threat"] is None:  # all attacks together
            continue
        name = match["name"].replace("_", " ")
        condition = {"clean": CLEAN, "corruption": name}.get(match["kind"], f"{match['name']}, {match['threat']}")
        found.setdefault(condition, []).append(value)
    point = {condition: statistics.fmean(values) for condition, values in found.items()}
    return {"epoch": record["epoch"], **point} if point else {}


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the mean of the first values, and that of what the second ones have more."""
    return statistics.fmean(bp for bp, _ in pairs), statistics.fmean(own - bp for bp, own in pairs)


def same_input_noise(model: ModelResult, models: Sequence[ModelResult]) -> ModelResult | None:
    """Returns backpropagation with the noise on the inputs that a model has; None for a model without such noise."""
    if model.backprop or model.input_noise is None:
        return None
    found = [each for each in models if each.backprop and each.input_noise == model.input_noise]
    return next(iter(_of_value(found, model.value)), None)


def references(models: Sequence[ModelResult], value: str) -> list[ModelResult]:
    """Returns backpropagation without noise, with a value of the setting if it was trained with it."""
    return _of_value([model for model in models if model.reference], value)


def _of_value(models: Sequence[ModelResult], value: str) -> list[ModelResult]:
    """Returns the models with a value; all of them if none has it, as where the value makes no difference to them."""
    return [model for model in models if model.value == value] or list(models)


def model_result(model: str, value: str, report: Report, seeds: list[SeedResult]) -> ModelResult:
    """Returns the result of a model and value, given one of its reports and its finished runs."""
    column = column_of(model, report, fgsm_eps(report.config))
    published = {e.condition: e.paper for e in column.entries.values() if e.paper is not None}
    config = report.config
    backprop = config["estimator"]["name"] == "pathwise" and config["noise"]["law"] == "none"
    return ModelResult(model, value, column.model or "", backprop, config["noise"].get("input"), published, seeds)


def with_equal(models: Sequence[ModelResult]) -> list[ModelResult]:
    """Returns the models with backpropagation at equal clean accuracy beside every other one."""
    return [
        model
        if model.reference
        else replace(
            model,
            seeds=[_with_equal(seed, references(models, model.value)) for seed in model.seeds],
        )
        for model in models
    ]


def _with_equal(seed: SeedResult, models: Sequence[ModelResult]) -> SeedResult:
    curves = [each.curve for model in models for each in model.seeds if each.seed == seed.seed]
    if not seed.curve or not curves:
        return seed
    clean = seed.curve[-1][CLEAN]
    found = [point for curve in curves if (point := at_clean(curve, clean)) is not None]
    shared = [condition for condition in (found[0] if found else {}) if all(condition in point for point in found)]
    equal = {condition: statistics.fmean(point[condition] for point in found) for condition in shared}
    return replace(seed, equal=equal)


def at_clean(curve: Sequence[Point], clean: float) -> Point | None:
    """Returns the accuracies where a curve first passes a clean accuracy, interpolated between two evaluations.

    Returns:
        The accuracies by condition; None if the curve begins above the clean accuracy or does not reach it.
    """
    for before, after in pairwise(curve):
        if before[CLEAN] <= clean <= after[CLEAN]:
            span = after[CLEAN] - before[CLEAN]
            share = (clean - before[CLEAN]) / span if span else 0.0
            return {
                name: before[name] + share * (after[name] - before[name])
                for name in before
                if name in after and name != "epoch"
            }
    return None
