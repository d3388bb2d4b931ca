"""Connects a trial queue to Ray Tune's search algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from glr_dist.tuning.objectives import EVERY_EPOCH, is_evaluated
from glr_dist.tuning.progress import SearchProgress
from glr_dist.tuning.results import write_trials
from glr_dist.tuning.trial_queue import TrialQueue
from glr_dist.tuning.trial_record import TrialRecord, read_record, read_records
from glr_dist.tuning.trial_runner import Interval, TrialRunner

MAX_RESTARTS = 3  # of a trial whose process dies


class QueueSearcher(Searcher):
    """Hands the intervals of a queue to Ray Tune, which runs each as a separate trial, and saves their results.

    Args:
        runner: runs the trials.
        queue: the remaining intervals.
        progress: shows each interval that ends.
    """

    def __init__(self, runner: TrialRunner, queue: TrialQueue, progress: SearchProgress) -> None:
        super().__init__()
        self._runner, self._queue, self._progress = runner, queue, progress
        self._intervals: dict[str, Interval] = {}

    def __getstate__(self) -> dict[str, object]:
        """Keeps everything out of Ray Tune's snapshots: the tracking URI may hold a password."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # or FINISHED
        if self._queue.done == self._queue.total:
            return str(Searcher.FINISHED)
        if (interval := self._queue.ask()) is None:
            return None
        self._intervals[trial_id] = interval
        return interval._asdict()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        record = read_record(self._runner.out, self._intervals[trial_id].number)
        if record.status == "started":
            record = _unfinished(record, result or {}, died=error)
            record.save(self._runner.out)
        self._queue.tell(record)
        write_trials(self._runner.search, read_records(self._runner.out), self._runner.out)
        self._progress.show(record)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignores the results of single epochs: the queue learns from the record when the interval ends."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Ray Tune requires a file

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: the records of the trials are the state of the search."""


def _unfinished(record: TrialRecord, result: Mapping[str, Any], *, died: bool) -> TrialRecord:
    """Returns the record of a trial that the scheduler stopped, or whose process died."""
    if died:
        return record.updated(status="lost", reason=f"its process died {MAX_RESTARTS + 1} times")
    metrics = {name: value for name, value in result.items() if name in EVERY_EPOCH or is_evaluated(name)}
    return record.updated(
        status="stopped",
        metrics=metrics,
        epochs=result.get("epoch", 0),
        seconds=round(result.get("time_total_s", 0.0), 3),
    )
