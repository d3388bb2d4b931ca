"""The remaining work of a search: intervals of its trials, in the order in which they may start. Needs no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from glr_dist.tuning.algorithms import ALGORITHMS
from glr_dist.tuning.population import Population
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial_record import TrialRecord
from glr_dist.tuning.trial_runner import Interval, TrialRunner


class TrialQueue(Protocol):
    """Hands out intervals of trials, and learns from their results.

    Attributes:
        unit: what progress counts, "trial" or "interval".
        done: number of intervals that have ended.
        total: number of intervals of the whole search.
    """

    unit: str
    done: int
    total: int

    def ask(self) -> Interval | None:
        """Returns an interval that may start now, with the trial's record on disk; None while others must end first."""
        ...

    def tell(self, record: TrialRecord) -> None:
        """Registers the record of a trial whose interval has ended."""
        ...


class IndependentTrials:
    """Trials that train without interruption: first the interrupted ones, then new points.

    Args:
        runner: runs the trials.
        records: records of the existing trials.
    """

    unit = "trial"

    def __init__(self, runner: TrialRunner, records: Sequence[TrialRecord]) -> None:
        tune, self._out = runner.search.tune, runner.out
        self._study = Study(tune, runner.search.base.model_dump(mode="json"), records)
        self._interrupted = deque(record for record in records if not record.done)
        known = {record.number for record in records}
        self._new = deque(number for number in range(tune.number) if number not in known)
        self.done, self.total = sum(record.done for record in records), tune.number

    def ask(self) -> Interval | None:
        if self._interrupted:
            record = self._interrupted.popleft().updated(status="started", reason="")
            self._study.resume(record)
        elif self._new:
            number = self._new.popleft()
            record = TrialRecord(number=number, point=self._study.suggest(number))
        else:
            return None
        record.save(self._out)
        return Interval(record.number)

    def tell(self, record: TrialRecord) -> None:
        self._study.tell(record)
        self.done += 1


def queue_of(runner: TrialRunner, records: Sequence[TrialRecord]) -> TrialQueue:
    """Returns the remaining work of a search.

    Args:
        runner: runs the trials.
        records: records of the existing trials.
    """
    population = ALGORITHMS[runner.search.tune.algorithm].population
    return Population(runner, records) if population else IndependentTrials(runner, records)
