"""One report on a run's robustness: figures with intervals, and what could not be tested. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from glr_dist import __version__
from glr_dist.config import Section
from glr_dist.errors import ConfigError
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.outcome import Outcome
from glr_dist.robustness.suite import Suite

FILE = "robustness.json"
_Z = 1.959963984540054  # two-sided 95 %
_MOST_UNTESTED = 0.01  # of the examples, for which an attack may find no derivative; they count as errors


class Rate(Section):
    """A share of examples classified well, with its 95 % interval by Wilson (JASA 22, 1927)."""

    accuracy: float
    low: float
    high: float
    examples: int

    @classmethod
    def of(cls, correct: int, examples: int) -> Rate:
        """Of counts; the interval is (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
        n, p = examples, correct / examples
        centre, spread = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        scale = 1 + _Z**2 / n
        # At 0 and 1 the interval ends there; rounding may miss it.
        low, high = max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
        return cls(accuracy=p, low=low if correct else 0.0, high=high if correct < n else 1.0, examples=n)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"


class AttackResult(Section):
    """What an attack leaves of the accuracy; `reason` says why it could not test the network, and then there is none.

    Attributes:
        untested: examples with no derivative to follow; they count as errors.
        mean_length: mean L2 norm of the perturbations that changed a right prediction of the network attacked, for an
            attack that looks for the least.
    """

    attack: str
    threat: str
    norm: str
    eps: float | None
    rate: Rate | None
    untested: int = 0
    mean_length: float | None = None
    reason: str | None = None


class WorstCase(Section):
    """The share of examples that withstand every attack of one norm and ε: the honest robust accuracy.

    `attacks` are those that tried all of the examples; `untestable` those that could not test the network.
    """

    norm: str
    eps: float
    attacks: tuple[str, ...]
    untestable: tuple[str, ...]
    rate: Rate | None


class CorruptionResult(Section):
    """What a corruption leaves of the accuracy, of this network and of the baseline."""

    name: str
    severity: int
    rate: Rate
    baseline: Rate


class CorruptionErrors(Section):
    """Errors relative to the baseline's: CE = Σ errors / Σ errors of the baseline over severities; `mean` is mCE.

    None where the baseline makes no error. Hendrycks & Dietterich, ICLR 2019, section 4.
    """

    baseline: str
    by_name: dict[str, float | None]
    mean: float | None


class Report(Section):
    """Everything that was measured on a run.

    Attributes:
        version: of glr_dist.
        run: the name of its folder.
        settings: the run's configuration.
        epoch: of the checkpoint.
        params_sha256: digest of its parameters.
        suite: what was measured.
        clean: without any change to the images.
        attacks, worst_cases, corruptions: by condition.
        corruption_errors: relative to the baseline.
    """

    version: str = __version__
    run: str
    settings: dict[str, Any]
    epoch: int
    params_sha256: str
    suite: dict[str, Any]
    clean: Rate
    attacks: tuple[AttackResult, ...]
    worst_cases: tuple[WorstCase, ...]
    corruptions: tuple[CorruptionResult, ...]
    corruption_errors: CorruptionErrors | None

    def metrics(self) -> dict[str, float]:
        """The figures by names for a tracking server; what could not be tested is left out."""
        found = {"clean/accuracy": self.clean.accuracy}
        for a in self.attacks:
            if a.rate is not None:
                norm = "_l2" if a.norm == "l2" and a.eps is not None else ""
                budget = "" if a.eps is None else f"/eps_{a.eps:g}"
                found[f"robust/{a.threat}/{a.attack}{norm}{budget}/accuracy"] = a.rate.accuracy
        for worst in self.worst_cases:
            if worst.rate is not None:  # the last one of an ε is over the most attacks
                found[f"robust/worst_case/{worst.norm}/eps_{worst.eps:g}/accuracy"] = worst.rate.accuracy
        for c in self.corruptions:
            found[f"corruption/{c.name}/s{c.severity}/accuracy"] = c.rate.accuracy
        if self.corruption_errors is not None and self.corruption_errors.mean is not None:
            found["corruption/mce"] = self.corruption_errors.mean
        return found


def read_report(folder: Path) -> Report:
    """The report that `glr-dist evaluate` wrote into a run's folder.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = folder / FILE
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        advice = f"measure it first with: glr-dist evaluate {folder}"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except ValidationError:
        raise ConfigError(f"{path}: is no report of this version of glr_dist; evaluate the run again") from None


class _Bits:
    """The outcomes of one condition, put together.

    Attributes:
        reason: why its attack cannot test the network, None where it can.
        withstood: which images are still classified well, the attack having tried; one that it could not try says
            nothing by that, and counts as an error.
        fooled: which images are not, whatever the attack may be worth elsewhere; empty where nothing was computed.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.reason = next((outcome.reason for outcome in outcomes if outcome.reason), None)
        done = [] if self.reason else outcomes  # of an attack that is refused, blocks may be missing
        self.correct = "".join(outcome.correct for outcome in done)
        self.baseline = "".join(outcome.baseline for outcome in done)
        self.lengths = [length for outcome in done for length in outcome.lengths]
        tested = "".join(outcome.tested for outcome in done)
        self.withstood = [c == t == "1" for c, t in zip(self.correct, tested, strict=True)]
        self.fooled = [c == "0" for c in self.correct]
        self.untested = self.correct.count("1") - sum(self.withstood)
        if self.untested > _MOST_UNTESTED * len(self.correct):
            share = f"{self.untested} of {len(self.correct)} examples"
            self.reason = f"the input gradient is zero, or not finite, for {share}"

    @property
    def rate(self) -> Rate:
        return Rate.of(sum(self.withstood), len(self.withstood))


def report_of(
    run: str,
    settings: dict[str, Any],
    epoch: int,
    params_sha256: str,
    suite: Suite,
    conditions: Sequence[Condition],
    outcomes: Mapping[str, Sequence[Outcome]],
) -> Report:
    """Puts the outcomes of all blocks of all conditions together.

    Args:
        run, settings, epoch, params_sha256: as of `Report`.
        suite: what was measured.
        conditions: its conditions.
        outcomes: by the label of the condition, in the order of the blocks.
    """
    bits = {condition.label: _Bits(outcomes[condition.label]) for condition in conditions}
    attacks = [condition for condition in conditions if condition.attack is not None]
    corruptions = [condition for condition in conditions if condition.severity is not None]
    return Report(
        run=run,
        settings=settings,
        epoch=epoch,
        params_sha256=params_sha256,
        suite=suite.model_dump(mode="json"),
        clean=bits["clean"].rate,
        attacks=tuple(_attack(condition, bits[condition.label]) for condition in attacks),
        worst_cases=tuple(_worst_cases(attacks, bits)),
        corruptions=tuple(
            CorruptionResult(
                name=c.name,
                severity=c.severity or 0,
                rate=bits[c.label].rate,
                baseline=Rate.of(bits[c.label].baseline.count("1"), c.examples),
            )
            for c in corruptions
        ),
        corruption_errors=_errors(suite.baseline, corruptions, bits) if corruptions else None,
    )


def _attack(condition: Condition, bits: _Bits) -> AttackResult:
    changed = [length for length in bits.lengths if length > 0]
    return AttackResult(
        attack=condition.name,
        threat=condition.threat or "",
        norm=condition.norm or "",
        eps=condition.eps,
        rate=bits.rate if bits.reason is None else None,
        untested=bits.untested,
        mean_length=math.fsum(changed) / len(changed) if changed and bits.reason is None else None,
        reason=bits.reason,
    )


def _worst_cases(attacks: Sequence[Condition], bits: Mapping[str, _Bits]) -> Iterator[WorstCase]:
    """For each norm and ε: over the attacks that tried the most examples, then with those that tried fewer.

    What an attack of a smaller ε has found lies in the larger ball too, and what a refused attack has found counts.
    """
    for norm, eps in dict.fromkeys((c.norm, c.eps) for c in attacks if c.eps is not None):
        within = [c for c in attacks if c.norm == norm and c.eps is not None and eps is not None and c.eps <= eps]
        here = [c for c in within if c.eps == eps]
        untestable = tuple(c.label for c in here if bits[c.label].reason is not None)
        tried = [c for c in here if c.label not in untestable]
        # Random noise tests nothing.
        sizes = sorted({c.examples for c in tried if c.threat != "control"}, reverse=True)
        if not sizes:
            yield WorstCase(norm=norm or "", eps=eps or 0, attacks=(), untestable=untestable, rate=None)
        for examples in sizes:
            labels = tuple(c.label for c in tried if c.examples >= examples)
            left = bits["clean"].withstood[:examples]
            for c in within:
                if c.examples >= examples and bits[c.label].fooled:
                    counted = bits[c.label].withstood if c.label in labels else [not f for f in bits[c.label].fooled]
                    left = [a and b for a, b in zip(left, counted, strict=False)]
            rate = Rate.of(sum(left), examples)
            yield WorstCase(norm=norm or "", eps=eps or 0, attacks=labels, untestable=untestable, rate=rate)


def _errors(baseline: str, corruptions: Sequence[Condition], bits: Mapping[str, _Bits]) -> CorruptionErrors:
    by_name: dict[str, float | None] = {}
    for name in dict.fromkeys(c.name for c in corruptions):
        found = [bits[c.label] for c in corruptions if c.name == name]
        errors = sum(each.baseline.count("0") for each in found)
        by_name[name] = sum(each.correct.count("0") for each in found) / errors if errors else None
    known = [value for value in by_name.values() if value is not None]
    mean = math.fsum(known) / len(known) if len(known) == len(by_name) else None
    return CorruptionErrors(baseline=baseline, by_name=by_name, mean=mean)
