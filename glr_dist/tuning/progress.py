"""Progress of a search: a bar in a terminal, otherwise one line per trial."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from glr_dist.tuning.objectives import cost
from glr_dist.tuning.table import trial_line
from glr_dist.tuning.trial_queue import TrialQueue
from glr_dist.tuning.trial_record import TrialRecord
from glr_dist.tuning.trial_runner import TrialRunner


class SearchProgress:
    """Shows each interval that ends, as a context manager.

    Args:
        runner: runs the trials.
        queue: counts the intervals.
        records: records of the existing trials.
    """

    def __init__(self, runner: TrialRunner, queue: TrialQueue, records: Sequence[TrialRecord]) -> None:
        self._objectives, self._queue = runner.search.tune.objectives, queue
        self._best: TrialRecord | None = None
        for record in records:
            self._compare(record)
        self._bar = tqdm(
            total=queue.total,
            initial=queue.done,
            disable=not sys.stderr.isatty(),
            unit=queue.unit,
            dynamic_ncols=True,
        )

    def show(self, record: TrialRecord) -> None:
        """Shows the record of a trial whose interval has ended."""
        self._compare(record)
        if self._bar.disable:
            line = f"trial {record.number:<3} {trial_line(record, self._objectives)}"
            print(f"{line}  ({self._queue.done} of {self._queue.total}{self._best_so_far()})", flush=True)
        else:
            self._bar.set_postfix_str(f"trial {record.number} {record.status}{self._best_so_far()}", refresh=False)
            self._bar.update()

    def _compare(self, record: TrialRecord) -> None:
        """Keeps the best trial by the first objective that was measured at its end or between two intervals."""
        name = self._objectives[0]
        if record.status not in ("finished", "paused") or name not in record.metrics:
            return
        if self._best is None or cost(name, record.metrics[name]) < cost(name, self._best.metrics[name]):
            self._best = record

    def _best_so_far(self) -> str:
        if self._best is None:
            return ""
        return f"; best {self._best.metrics[self._objectives[0]]:.4f}, trial {self._best.number}"

    def __enter__(self) -> SearchProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
