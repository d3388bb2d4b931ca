"""Combines the measurements of all blocks into a report. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glr_dist.robustness.conditions import Attacked, Condition, Corrupted, of_kind
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.rate import Rate
from glr_dist.robustness.report import AttackResult, CorruptionErrors, CorruptionResult, Report, RobustAccuracy
from glr_dist.robustness.suite import Suite
from glr_dist.runs import CheckpointName

_MAX_UNTESTED = 0.01  # maximum fraction of examples without a gradient; such examples count as errors


def report_of(
    suite: Suite,
    conditions: Sequence[Condition],
    measurements: Mapping[str, Sequence[Measurement]],
    *,
    run: str,
    config: dict[str, Any],
    epoch: int,
    params_sha256: str,
    checkpoint: CheckpointName = "newest",
) -> Report:
    """Combines the measurements of all blocks of all conditions.

    Args:
        suite: the suite.
        conditions: the suite's conditions.
        measurements: label of a condition -> measurements in the order of the blocks.
        run, config, epoch, params_sha256, checkpoint: see `Report`.
    """
    scores = {condition.label: _Score(measurements[condition.label]) for condition in conditions}
    attacks, corruptions = of_kind(conditions, Attacked), of_kind(conditions, Corrupted)
    return Report(
        run=run,
        config=config,
        checkpoint=checkpoint,
        epoch=epoch,
        params_sha256=params_sha256,
        suite=Suite.model_validate(suite.model_dump()),
        clean=scores["clean"].rate,
        attacks=tuple(_attack_result(condition, scores[condition.label]) for condition in attacks),
        robust_accuracies=tuple(_robust_accuracies(attacks, scores)),
        corruptions=tuple(
            CorruptionResult(
                name=c.name,
                severity=c.severity,
                rate=scores[c.label].rate,
                baseline=Rate.of(scores[c.label].baseline.count("1"), c.examples),
            )
            for c in corruptions
        ),
        corruption_errors=_corruption_errors(suite.baseline, corruptions, scores) if corruptions else None,
    )


class _Score:
    """The measurements of one condition, joined over its blocks.

    Attributes:
        reason: why the attack cannot test the network; None if it can.
        robust: which images were attacked and are still correct. An image without a gradient to follow was never
            attacked and counts as an error.
        fooled: which images are misclassified, even if the attack is refused; empty if nothing was measured.
    """

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self.reason = next((each.reason for each in measurements if each.reason), None)
        whole = [] if self.reason else measurements  # a refused attack may lack blocks
        self.correct = "".join(each.correct for each in whole)
        self.baseline = "".join(each.baseline for each in whole)
        self.l2_norms = [norm for each in whole for norm in each.l2_norms]
        tested = "".join(each.tested for each in whole)
        self.robust = [c == t == "1" for c, t in zip(self.correct, tested, strict=True)]
        self.fooled = [c == "0" for c in self.correct]
        self.untested = self.correct.count("1") - sum(self.robust)
        if self.untested > _MAX_UNTESTED * len(self.correct):
            share = f"{self.untested} of {len(self.correct)} examples"
            self.reason = f"the input gradient is zero, or not finite, for {share}"

    @property
    def rate(self) -> Rate:
        return Rate.of(sum(self.robust), len(self.robust))


def _attack_result(condition: Attacked, score: _Score) -> AttackResult:
    changed = [norm for norm in score.l2_norms if norm > 0]
    return AttackResult(
        attack=condition.attack.name,
        threat=condition.threat,
        norm=condition.norm,
        eps=condition.eps,
        rate=score.rate if score.reason is None else None,
        untested=score.untested,
        mean_l2_norm=math.fsum(changed) / len(changed) if changed and score.reason is None else None,
        reason=score.reason,
    )


def _robust_accuracies(attacks: Sequence[Attacked], scores: Mapping[str, _Score]) -> Iterator[RobustAccuracy]:
    """Yields the robust accuracy for each norm and ε, first over the attacks that ran on the most examples.

    An image that is fooled within a smaller ε is fooled within the larger one too, and what a refused attack has
    fooled counts.
    """
    for norm, eps in dict.fromkeys((c.norm, c.eps) for c in attacks if c.eps is not None):
        within = [c for c in attacks if c.norm == norm and c.eps is not None and c.eps <= eps]
        here = [c for c in within if c.eps == eps]
        untestable = tuple(c.label for c in here if scores[c.label].reason is not None)
        tested = [c for c in here if c.label not in untestable]
        # The control tests nothing.
        sizes = sorted({c.examples for c in tested if c.threat != "control"}, reverse=True)
        if not sizes:
            yield RobustAccuracy(norm=norm, eps=eps, attacks=(), untestable=untestable, rate=None)
        for examples in sizes:
            labels = tuple(c.label for c in tested if c.examples >= examples)
            robust = scores["clean"].robust[:examples]
            for c in within:
                score = scores[c.label]
                if c.examples >= examples and score.fooled:
                    kept = score.robust if c.label in labels else [not fooled for fooled in score.fooled]
                    robust = [a and b for a, b in zip(robust, kept, strict=False)]
            rate = Rate.of(sum(robust), examples)
            yield RobustAccuracy(norm=norm, eps=eps, attacks=labels, untestable=untestable, rate=rate)


def _corruption_errors(
    baseline: str, corruptions: Sequence[Corrupted], scores: Mapping[str, _Score]
) -> CorruptionErrors:
    by_name: dict[str, float | None] = {}
    for name in dict.fromkeys(c.name for c in corruptions):
        here = [scores[c.label] for c in corruptions if c.name == name]
        errors = sum(score.baseline.count("0") for score in here)
        by_name[name] = sum(score.correct.count("0") for score in here) / errors if errors else None
    defined = [value for value in by_name.values() if value is not None]
    mean = math.fsum(defined) / len(defined) if len(defined) == len(by_name) else None
    return CorruptionErrors(baseline=baseline, by_name=by_name, mean=mean)
