"""Evaluates the robustness of runs: every condition of a suite, block by block, in this process or on Ray actors."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from glr_dist.errors import ConfigError
from glr_dist.execution.inline import Inline
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.ledger import Ledger
from glr_dist.robustness.measure import measure
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.output import write_pictures, write_report
from glr_dist.robustness.report import Report
from glr_dist.robustness.report_files import ReportFiles
from glr_dist.robustness.scoring import report_of
from glr_dist.robustness.subject import Subject, load_subject
from glr_dist.robustness.suite import Suite
from glr_dist.runs import RunFolder, claim
from glr_dist.training import checkpoint

_HANG = 600.0  # seconds after which an actor that works on one block is restarted


class Work(NamedTuple):
    """One block of one subject under one condition."""

    subject: int
    condition: Condition
    block: int


def evaluate(
    folders: Sequence[Path], suite: Suite, *, device: str | None = None, actors: int | None = None
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

    Returns:
        The report of each run.

    Raises:
        UserError: a folder is not a run, a checkpoint is damaged, the suite does not fit, another process evaluates
            the run with this suite, its report belongs to another suite of that name, or the cluster has no room.
        OSError: a folder cannot be written.
    """
    keep_freed_memory()
    if actors is None and "RAY_ADDRESS" not in os.environ:
        actors = 0
    if actors != 0:
        if device not in (None, "auto", "cpu"):
            raise ConfigError(f"--device: {device!r} is not allowed: Ray actors evaluate on CPUs; add --actors 0")
        device = "cpu"
    with ExitStack() as claims:
        files = [ReportFiles(folder.absolute(), suite.report_name) for folder in folders]
        for each in files:
            RunFolder(each.run).config()  # raises before anything is written into a wrong folder
            claims.enter_context(_claimed(each))
            each.check_replaceable(suite)
        subjects = [load_subject(each.run, suite, device) for each in files]
        ledgers = [
            Ledger.open(each.ledger, subject.fingerprint(suite), subject.conditions(suite), suite.block)
            for each, subject in zip(files, subjects, strict=True)
        ]
        reports: dict[int, Report] = {}
        with _Progress(ledgers) as progress:
            for work, measurement in _measurements(subjects, suite, _pending(ledgers), actors):
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


def _pending(ledgers: Sequence[Ledger]) -> Iterator[Work]:
    """Yields the blocks that are still to be measured at the time of the request."""
    for number, ledger in enumerate(ledgers):
        for condition in ledger.conditions:
            for block in ledger.blocks(condition):
                if ledger.is_pending(condition, block):
                    yield Work(number, condition, block)


def _measurements(
    subjects: Sequence[Subject], suite: Suite, work: Iterator[Work], actors: int | None
) -> Iterator[tuple[Work, Measurement]]:
    """Yields the measurement of each block in the order of completion."""
    if actors == 0:
        yield from _on_threads(subjects, suite, work)
        return
    from glr_dist.execution.pool import Call, Pool  # here: Ray takes a second to import

    sent: list[Work] = []
    pool = Pool(_Remote, actors=actors, hang_timeout=_HANG)
    try:
        # Shared with each call: a restarted actor may have lost the arguments of its constructor.
        shared = pool.share("evaluation", (subjects, suite))

        def calls() -> Iterator[Call]:
            for each in work:
                sent.append(each)
                yield Call("measure", (shared, *each))

        for number, measurement in pool.run(calls()):
            yield sent[number], measurement
    finally:
        pool.close()


class _Remote:
    """The object inside each actor of the pool."""

    def measure(self, evaluation: tuple[Sequence[Subject], Suite], *work: Any) -> Measurement:
        subjects, suite = evaluation
        number, condition, block = work
        return measure(subjects[number], suite, condition, block)


def _on_threads(subjects: Sequence[Subject], suite: Suite, work: Iterator[Work]) -> Iterator[tuple[Work, Measurement]]:
    """Measures on threads of this process, each with its own copies of the networks."""
    local = threading.local()
    executor = Inline(1 if subjects[0].images.images.is_cuda else None)

    def measured(each: Work) -> tuple[Work, Measurement]:
        if not hasattr(local, "subjects"):
            local.subjects = subjects if executor.threads == 1 else [subject.copied() for subject in subjects]
        return each, measure(local.subjects[each.subject], suite, each.condition, each.block)

    yield from executor.map(measured, work)


def _finish(files: ReportFiles, subject: Subject, suite: Suite, ledger: Ledger) -> Report:
    """Writes the report, removes the ledger, then draws the pictures."""
    measurements = ledger.in_order()
    report = report_of(
        suite,
        ledger.conditions,
        measurements,
        run=subject.folder.name,
        config=subject.config.model_dump(mode="json"),
        epoch=subject.epoch,
        params_sha256=checkpoint.digest(subject.net.state_dict()),
    )
    write_report(files, report)
    ledger.remove()
    write_pictures(files, report, subject, ledger.conditions, measurements)
    return report


class _Progress:
    """A progress bar over the blocks; without a terminal, one line for each finished condition."""

    def __init__(self, ledgers: Sequence[Ledger]) -> None:
        self._ledgers = ledgers
        self._printed: set[tuple[Ledger, str]] = set()
        total = sum(ledger.missing for ledger in ledgers)
        self._bar = tqdm(total=total, disable=not sys.stderr.isatty(), unit="block", dynamic_ncols=True)

    def update(self, ledger: Ledger, condition: Condition) -> None:
        """Reports that one more block of a condition is measured."""
        if not self._bar.disable:
            self._bar.set_postfix_str(condition.label, refresh=False)
            # The total shrinks when an attack is refused: its other blocks are never measured.
            self._bar.total = self._bar.n + 1 + sum(each.missing for each in self._ledgers)
            self._bar.update()
            return
        pending = any(ledger.is_pending(condition, block) for block in ledger.blocks(condition))
        if not pending and (ledger, condition.label) not in self._printed:
            self._printed.add((ledger, condition.label))  # blocks of a refused attack may still be in flight
            blocks = list(ledger.measurements[condition.label].values())
            refused = next((block.reason for block in blocks if block.reason), None)
            accuracy = sum(block.correct.count("1") for block in blocks) / condition.examples
            print(f"{condition.label:<32}{refused or f'accuracy {accuracy:.4f}'}", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
