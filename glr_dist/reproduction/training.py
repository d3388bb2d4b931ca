"""Runs of a reproduction as tasks of a pool: each is trained, evaluated, and continued after an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from glr_dist import __version__
from glr_dist.errors import ConfigError, UserError
from glr_dist.reproduction.recipe import PlannedRun
from glr_dist.robustness.report import Report
from glr_dist.robustness.report_files import read_report
from glr_dist.robustness.suite import Suite
from glr_dist.robustness.workers import spread
from glr_dist.runs import RunFolder
from glr_dist.text import one_line
from glr_dist.tracking import tracked
from glr_dist.training.trainer import Trainer
from glr_dist.tuning.trial_runner import patient_claim

_HANG = 7 * 24 * 3600.0  # seconds; a run takes as long as it takes


def report_of_run(run: PlannedRun, suite: Suite) -> Report | None:
    """Returns the report of a finished run; None if the run or its evaluation is not finished."""
    folder = RunFolder(run.folder)
    try:
        summary = folder.summary()
        report = read_report(folder.path, suite.report_name)
        if report.version == __version__ and report.suite == suite and report.params_sha256 == summary["params_sha256"]:
            folder.check_resumable(run.config)
            return report
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        pass
    return None


def train_runs(runs: Sequence[PlannedRun], actors: int | None, gpus: float) -> Iterator[tuple[PlannedRun, str]]:
    """Trains and evaluates runs; yields each with an empty text, or with the reason why it failed, as it ends.

    Args:
        runs: the runs.
        actors: number of Ray actors, each with one run at a time; 0: one after the other in this process. Default: as
            many as the cluster has room for.
        gpus: GPUs, or a share of one, of an actor.

    Raises:
        ClusterError: the cluster has no room for an actor, or its actors are lost.
    """
    work = ((number,) for number in range(len(runs)))
    trained = spread(
        _train, list(runs), work, actors, copied=list, threads=1, hang=_HANG, role="Reproduction", gpus=gpus
    )
    for (number,), reason in trained:
        yield runs[number], reason


def _train(runs: Sequence[PlannedRun], number: int) -> str:
    """Trains and evaluates one run; returns an empty text, or one line that says why it failed."""
    run = runs[number]
    try:
        with patient_claim(run.folder):
            trainer = Trainer(run.config, run.folder, resume=True)
            if trainer.evaluator is not None:
                trainer.evaluator.actors = 0
            with tracked(run.config, run.folder):
                trainer.run()
    except (UserError, FloatingPointError, OSError) as error:
        return one_line(error)
    return ""
