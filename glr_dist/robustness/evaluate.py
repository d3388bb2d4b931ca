"""Evaluates the robustness of runs: every condition of a suite, block by block, in this process or on Ray actors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from glr_dist.claims import claim
from glr_dist.errors import ConfigError
from glr_dist.execution.address import ray_address
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.robustness.ledger import Ledger
from glr_dist.robustness.output import write_pictures, write_report
from glr_dist.robustness.progress import Progress
from glr_dist.robustness.report import Report, report_name
from glr_dist.robustness.report_files import ReportFiles
from glr_dist.robustness.scoring import report_of
from glr_dist.robustness.subject import Subject, load_subject, subject_of
from glr_dist.robustness.suite import Suite
from glr_dist.robustness.workers import measurements, pending
from glr_dist.runs import CheckpointName, RunFolder
from glr_dist.training import checkpoint
from glr_dist.training.trained_run import TrainedRun


def evaluate(
    folders: Sequence[Path],
    suite: Suite,
    *,
    device: str | None = None,
    actors: int | None = None,
    which: CheckpointName = "newest",
) -> list[Report]:
    """Evaluates runs under every condition of a suite; writes a report, a page and pictures into each run's folder.

    The files are `robustness/SUITE-SPLIT.json`, `….md` and `…-eps.png` etc. (see `ReportFiles`). An older report of the
    same suite is replaced.

    Args:
        folders: the runs' folders.
        suite: the suite.
        device: "auto", "cpu" or "cuda[:N]" in place of the runs' own device.
        actors: number of Ray actors, on CPUs; 0: evaluate in this process. Default: as many as fit on the cluster at
            RAY_ADDRESS, or 0 if RAY_ADDRESS is not set.
        which: the checkpoint of each run: "newest", or "best", whose report is `SUITE-SPLIT.best`.

    Returns:
        The report of each run.

    Raises:
        UserError: a folder is not a run, a checkpoint is damaged, the suite does not fit, another process evaluates
            the run with this suite, its report belongs to another suite of that name, or the cluster has no room.
        OSError: a folder cannot be written.
    """
    keep_freed_memory()
    if actors is None and ray_address() is None:
        actors = 0
    if actors != 0:
        if device not in (None, "auto", "cpu"):
            raise ConfigError(f"--device: {device!r} is not allowed: Ray actors evaluate on CPUs; add --actors 0")
        device = "cpu"
    with ExitStack() as claims:
        files = [ReportFiles(folder.absolute(), report_name(suite, which)) for folder in folders]
        for each in files:
            RunFolder(each.run).config()  # raises before anything is written into a wrong folder
            claims.enter_context(_claimed(each))
            each.check_replaceable(suite)
        subjects = [load_subject(each.run, suite, device, which) for each in files]
        ledgers = [
            Ledger.open(each.ledger, subject.fingerprint(suite), subject.conditions(suite), suite.block)
            for each, subject in zip(files, subjects, strict=True)
        ]
        reports: dict[int, Report] = {}
        with Progress(ledgers) as progress:
            for work, measurement in measurements(subjects, suite, pending(ledgers), actors):
                number, condition, block = work
                if number in reports:  # a block of a refused attack that was in flight
                    continue
                ledgers[number].add(condition, block, measurement)
                progress.update(ledgers[number], condition)
                if not ledgers[number].missing:
                    reports[number] = _finish(files[number], subjects[number], suite, ledgers[number])
        for number, ledger in enumerate(ledgers):
            if number not in reports:  # the ledger was complete, but its process was stopped before the report
                reports[number] = _finish(files[number], subjects[number], suite, ledger)
    return [reports[number] for number in range(len(files))]


def evaluate_in_training(
    run: TrainedRun, suite: Suite, ledger: Path, earlier: Subject | None
) -> tuple[Report, Subject]:
    """Evaluates a network that is being trained, in this process; writes no report.

    Args:
        run: the run, with the network of its last epoch.
        suite: the suite.
        ledger: the file of the finished blocks, from which a stopped evaluation of the same network continues.
        earlier: the subject of an earlier evaluation of this run, whose images and other networks are used again.

    Returns:
        The report, and the subject.

    Raises:
        UserError: the suite does not fit the run.
        OSError: the ledger cannot be written.
    """
    subject = subject_of(run, suite, earlier=earlier)
    subject = replace(subject, kept={} if earlier is None else earlier.kept)
    opened = Ledger.open(ledger, subject.fingerprint(suite), subject.conditions(suite), suite.block)
    with Progress([opened], passing=True) as progress:
        for (_, condition, block), measurement in measurements([subject], suite, pending([opened]), actors=0):
            opened.add(condition, block, measurement)
            progress.update(opened, condition)
    report = _report(subject, suite, opened)
    opened.remove()
    return report, subject


@contextmanager
def _claimed(files: ReportFiles) -> Iterator[None]:
    """Claims the report's files for this process; leaves no empty folder behind.

    Raises:
        ClaimedError: another process evaluates this run with a suite of this name.
        OSError: the folder cannot be written.
    """
    try:
        with claim(files.folder, purpose=files.name):
            yield
    finally:
        with suppress(OSError):
            files.folder.rmdir()


def _finish(files: ReportFiles, subject: Subject, suite: Suite, ledger: Ledger) -> Report:
    """Writes the report, removes the ledger, then draws the pictures."""
    report = _report(subject, suite, ledger)
    write_report(files, report)
    ledger.remove()
    write_pictures(files, report, subject, ledger.conditions, ledger.in_order())
    return report


def _report(subject: Subject, suite: Suite, ledger: Ledger) -> Report:
    return report_of(
        suite,
        ledger.conditions,
        ledger.in_order(),
        run=subject.folder.name,
        config=subject.config.model_dump(mode="json"),
        checkpoint=subject.checkpoint,
        epoch=subject.epoch,
        params_sha256=checkpoint.digest(subject.net.state_dict()),
    )
