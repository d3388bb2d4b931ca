"""The robustness report of a run: its fields. Imports no torch."""

from __future__ import annotations

from typing import Any

from glr_dist import __version__
from glr_dist.config import Section
from glr_dist.robustness.rate import Rate
from glr_dist.robustness.suite import Suite
from glr_dist.runs import CheckpointName


def report_name(suite: Suite, checkpoint: CheckpointName = "newest") -> str:
    """Returns the name of a suite's report on a checkpoint of a run."""
    return suite.report_name if checkpoint == "newest" else f"{suite.report_name}.{checkpoint}"


class AttackResult(Section):
    """Accuracy under one attack.

    Attributes:
        attack: name of the attack.
        threat: the attacker's knowledge of the network.
        norm: "linf" or "l2".
        eps: ε, the budget in `norm`; None for an attack that minimises the perturbation.
        rate: accuracy; None if the attack cannot test the network.
        untested: number of examples without a gradient to follow; they count as errors.
        mean_l2_norm: mean L2 norm of the perturbations that changed a correct prediction of the attacked network, for
            an attack that minimises it.
        reason: why the attack cannot test the network.
    """

    attack: str
    threat: str
    norm: str
    eps: float | None
    rate: Rate | None
    untested: int = 0
    mean_l2_norm: float | None = None
    reason: str | None = None


class RobustAccuracy(Section):
    """Robust accuracy: the fraction of examples that stay correct under every attack of one norm and ε.

    Attributes:
        norm: "linf" or "l2".
        eps: ε, the budget in `norm`.
        attacks: labels of the attacks that ran on all of these examples.
        untestable: labels of the attacks that cannot test the network.
        rate: the robust accuracy; None if no attack could test the network.
    """

    norm: str
    eps: float
    attacks: tuple[str, ...]
    untestable: tuple[str, ...]
    rate: Rate | None


class CorruptionResult(Section):
    """Accuracy under one corruption, of this network and of the baseline."""

    name: str
    severity: int
    rate: Rate
    baseline: Rate


class CorruptionErrors(Section):
    """Errors relative to the baseline: CE = Σ errors / Σ errors of the baseline over severities; `mean` is mCE.

    A value is None if the baseline makes no errors. Hendrycks & Dietterich, ICLR 2019, section 4.
    """

    baseline: str
    by_name: dict[str, float | None]
    mean: float | None


class Report(Section):
    """All results of one evaluation of a run.

    Attributes:
        version: version of glr_dist.
        run: name of the run's folder.
        config: the run's config.
        checkpoint: the checkpoint of the run: its newest one, or that of the best epoch on validation images.
        epoch: epoch of the checkpoint.
        params_sha256: digest of the network's parameters.
        suite: the suite.
        clean: accuracy on unchanged images.
        attacks: accuracy under each attack.
        robust_accuracies: robust accuracy for each norm and ε; one entry per number of examples that attacks ran on.
        corruptions: accuracy under each corruption.
        corruption_errors: corruption errors relative to the baseline; None without corruptions.
    """

    version: str = __version__
    run: str
    config: dict[str, Any]
    checkpoint: CheckpointName = "newest"
    epoch: int
    params_sha256: str
    suite: Suite
    clean: Rate
    attacks: tuple[AttackResult, ...]
    robust_accuracies: tuple[RobustAccuracy, ...]
    corruptions: tuple[CorruptionResult, ...]
    corruption_errors: CorruptionErrors | None

    @property
    def name(self) -> str:
        """The name of the report: `SUITE-SPLIT`, or `SUITE-SPLIT.best` for the best checkpoint."""
        return report_name(self.suite, self.checkpoint)

    def metrics(self) -> dict[str, float]:
        """Returns the results by their names on a tracking server, without those that could not be measured."""
        metrics = {"clean/accuracy": self.clean.accuracy}
        for a in self.attacks:
            if a.rate is not None:
                norm = "_l2" if a.norm == "l2" and a.eps is not None else ""
                budget = "" if a.eps is None else f"/eps_{a.eps:g}"
                metrics[f"robust/{a.threat}/{a.attack}{norm}{budget}/accuracy"] = a.rate.accuracy
        for r in self.robust_accuracies:
            if r.rate is not None:  # the last entry of an ε covers the most attacks
                metrics[f"robust/all_attacks/{r.norm}/eps_{r.eps:g}/accuracy"] = r.rate.accuracy
        for c in self.corruptions:
            metrics[f"corruption/{c.name}/s{c.severity}/accuracy"] = c.rate.accuracy
        if self.corruption_errors is not None and self.corruption_errors.mean is not None:
            metrics["corruption/mce"] = self.corruption_errors.mean
        return metrics
