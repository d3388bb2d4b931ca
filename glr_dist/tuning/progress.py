"""Progress of a search: a bar in a terminal, otherwise one line per trial."""

from __future__ import annotations

import sys

from tqdm import tqdm

from glr_dist.tuning.table import trial_line
from glr_dist.tuning.trial_queue import TrialQueue
from glr_dist.tuning.trial_record import TrialRecord
from glr_dist.tuning.trial_runner import TrialRunner


class SearchProgress:
    """Shows each interval that ends, as a context manager.

    Args:
        runner: runs the trials.
        queue: counts the intervals.
    """

    def __init__(self, runner: TrialRunner, queue: TrialQueue) -> None:
        self._objectives, self._queue = runner.search.tune.objectives, queue
        self._bar = tqdm(
            total=queue.total,
            initial=queue.done,
            disable=not sys.stderr.isatty(),
            unit=queue.unit,
            dynamic_ncols=True,
        )

    def show(self, record: TrialRecord) -> None:
        """Shows the record of a trial whose interval has ended."""
        if self._bar.disable:
            line = f"trial {record.number:<3} {trial_line(record, self._objectives)}"
            print(f"{line}  ({self._queue.done} of {self._queue.total})", flush=True)
        else:
            self._bar.set_postfix_str(f"trial {record.number} {record.status}", refresh=False)
            self._bar.update()

    def __enter__(self) -> SearchProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
