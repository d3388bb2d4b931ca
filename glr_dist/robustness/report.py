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
_EXPLAINED = {
    "random_sign": "random_sign is no attack but a control: random noise of the same size.",
    "lbfgs": "lbfgs looks for the least change in L2 that changes a prediction.",
}
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
    """The outcomes of one condition, put together."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.reason = next((outcome.reason for outcome in outcomes if outcome.reason), None)
        self.correct = "".join(outcome.correct for outcome in outcomes)
        self.tested = "".join(outcome.tested for outcome in outcomes)
        self.baseline = "".join(outcome.baseline for outcome in outcomes)
        self.lengths = [length for outcome in outcomes for length in outcome.lengths]
        # An example that the attack could not try says nothing by being classified well: it counts as an error.
        self.withstood = [c == t == "1" for c, t in zip(self.correct, self.tested, strict=True)]
        self.untested = self.correct.count("1") - sum(self.withstood)
        if self.reason is None and self.untested > _MOST_UNTESTED * len(self.correct):
            self.reason = f"the input gradient is zero for {self.untested} of {len(self.correct)} examples"

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
    """For each norm and ε: over the attacks that tried the most examples, then with those that tried fewer."""
    for norm, eps in dict.fromkeys((c.norm, c.eps) for c in attacks if c.eps is not None):
        group = [c for c in attacks if (c.norm, c.eps) == (norm, eps)]
        untestable = tuple(c.label for c in group if bits[c.label].reason is not None)
        tried = [c for c in group if c.label not in untestable]
        if all(c.threat == "control" for c in tried):  # random noise tests nothing
            yield WorstCase(norm=norm or "", eps=eps or 0, attacks=(), untestable=untestable, rate=None)
            continue
        for examples in sorted({c.examples for c in tried}, reverse=True):
            members = [c for c in tried if c.examples >= examples]
            if all(c.threat == "control" for c in members):
                continue
            every = [bits["clean"].withstood, *(bits[c.label].withstood for c in members)]
            withstood = sum(all(column) for column in zip(*(row[:examples] for row in every), strict=True))
            labels = tuple(c.label for c in members)
            rate = Rate.of(withstood, examples)
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


# ---------------------------------------------------------------- as text


def markdown(report: Report) -> str:
    """The report as a page of tables."""
    return "\n".join(_lines(report)) + "\n"


def described(settings: Mapping[str, Any]) -> str:
    """A run's configuration in a line."""
    model, noise, estimator = settings["model"], settings["noise"], settings["estimator"]
    law = "no noise" if noise["law"] == "none" else f"{noise['law']} noise {noise['scale']}"
    hidden = "-".join(map(str, model["hidden"]))
    loss = settings["training"]["loss"]
    return f"{settings['data']['name']}, {hidden} {model['activation']} units, {loss}, {estimator['name']}, {law}"


def _lines(report: Report) -> Iterator[str]:
    votes = report.suite["inference"]["votes"]
    yield f"# Robustness of {report.run}"
    yield ""
    predicted = f"by the majority of {votes} noisy passes" if votes else "without noise"
    yield f"{described(report.settings)}; after epoch {report.epoch}; predictions {predicted}."
    yield "Accuracy in % with its 95 % interval (Wilson)."
    yield ""
    yield f"Clean: {report.clean} on {report.clean.examples:,} {report.suite['split']} images."
    if report.attacks:
        yield from ("", "## Attacks", "")
        yield from table(["attack", "threat model", "ε", "accuracy", "examples", ""], map(_attack_row, report.attacks))
        known = {result.attack for result in report.attacks}
        yield from ("", *(text for attack, text in _EXPLAINED.items() if attack in known))
    if report.worst_cases:
        yield from ("", "## Worst case", "")
        yield "The share of images that withstand every attack: the robust accuracy, as far as these attacks reach."
        yield ""
        yield from table(["norm", "ε", "accuracy", "examples", "attacks"], map(_worst_row, report.worst_cases))
    if report.corruptions:
        yield from ("", f"## Corruptions ({report.suite['corruptions']['constants']})", "")
        yield from _corruptions(report)


def _attack_row(result: AttackResult) -> list[str]:
    eps = "least" if result.eps is None else f"{result.eps:g}"
    if result.rate is None:
        return [_name(result), result.threat, eps, "–", "", f"not testable by this attack: {result.reason}"]
    notes = []
    if result.untested:
        notes.append(f"{result.untested} had no gradient and count as errors")
    if result.mean_length is not None:
        notes.append(f"mean L2 change {result.mean_length:.3f}")
    return [_name(result), result.threat, eps, str(result.rate), f"{result.rate.examples:,}", "; ".join(notes)]


def _name(result: AttackResult) -> str:
    return f"{result.attack} (L2)" if result.norm == "l2" and result.eps is not None else result.attack


def _worst_row(worst: WorstCase) -> list[str]:
    norm = {"linf": "L∞", "l2": "L2"}[worst.norm]
    if worst.rate is None:
        return [norm, f"{worst.eps:g}", "–", "", "none could test the network"]
    names = [label.rpartition("/")[0] for label in worst.attacks]
    return [norm, f"{worst.eps:g}", str(worst.rate), f"{worst.rate.examples:,}", ", ".join(names)]


def _corruptions(report: Report) -> Iterator[str]:
    errors = report.corruption_errors
    assert errors is not None
    severities = list(dict.fromkeys(result.severity for result in report.corruptions))
    rows = []
    for name in errors.by_name:
        rates = [result.rate.accuracy for result in report.corruptions if result.name == name]
        relative = errors.by_name[name]
        cells = [f"{100 * rate:.2f}" for rate in (*rates, math.fsum(rates) / len(rates))]
        rows.append([name, *cells, "–" if relative is None else f"{relative:.3f}"])
    yield from table(["corruption", *(f"severity {s}" for s in severities), "mean", "CE"], rows)
    widest = max((result.rate.high - result.rate.low) / 2 for result in report.corruptions)
    yield ""
    mean = "not defined, the baseline makes no error" if errors.mean is None else f"{errors.mean:.3f}"
    yield f"Mean corruption error relative to {errors.baseline}: {mean}. 95 % intervals: at most ± {100 * widest:.2f}."


def table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    """A Markdown table whose columns line up, so that it can be read as it is."""
    cells = [list(head), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "| " + " | ".join("-" * max(3, width) for width in widths) + " |"
