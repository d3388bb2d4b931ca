"""Progress of a reproduction: a bar over the epochs of all runs, or a line now and then without a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from tqdm import tqdm

from glr_dist.reproduction.recipe import PlannedRun
from glr_dist.runs import RunFolder

_POLL_INTERVAL = 2.0  # seconds between two looks at the runs' folders
_LINE_INTERVAL = 60.0  # seconds between two lines without a terminal


class Progress:
    """Follows the folders of the runs in a thread, as a context manager.

    Args:
        runs: all runs.
        done: number of runs that are finished already.
    """

    def __init__(self, runs: Sequence[PlannedRun], done: int) -> None:
        self._runs, self._done = runs, done
        self._epochs = {run.folder: 0 for run in runs}
        self._total = sum(run.config.training.epochs for run in runs)
        silent = not sys.stderr.isatty()
        self._bar = tqdm(total=self._total, unit="epoch", disable=silent, dynamic_ncols=True)
        self._ended = threading.Event()
        self._started = self._printed = time.monotonic()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def finished(self, run: PlannedRun, reason: str) -> None:
        """Shows a run that has ended, with the reason if it failed."""
        self._done += not reason
        line = f"{run.folder.name}: {reason or 'trained and evaluated'}"
        minutes = (time.monotonic() - self._started) / 60
        self._bar.write(f"{line}  ({self._done} of {len(self._runs)} runs, {minutes:.1f} min)", file=sys.stdout)
        sys.stdout.flush()

    def __enter__(self) -> Progress:
        self._look()
        self._bar.initial = self._bar.n  # the rate counts epochs of this process
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._bar.close()

    def _follow(self) -> None:
        while not self._ended.wait(_POLL_INTERVAL):
            self._look()
            now = time.monotonic()
            if self._bar.disable and now - self._printed >= _LINE_INTERVAL:
                self._printed = now
                print(f"{sum(self._epochs.values())} of {self._total} epochs", file=sys.stderr, flush=True)

    def _look(self) -> None:
        """Counts the finished epochs of the runs."""
        for run in self._runs:
            if self._epochs[run.folder] < run.config.training.epochs:
                try:
                    content = RunFolder(run.folder).metrics_file.read_bytes()
                except OSError:
                    continue
                self._epochs[run.folder] = content.count(b"\n")
        running = sum(
            0 < epochs < run.config.training.epochs
            for run, epochs in zip(self._runs, self._epochs.values(), strict=True)
        )
        self._bar.set_postfix_str(f"{self._done} of {len(self._runs)} runs done, {running} begun", refresh=False)
        self._bar.update(sum(self._epochs.values()) - self._bar.n)
