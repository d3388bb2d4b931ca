"""What is left of a search: the turns of its trials, in the order in which they may begin. Needs no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from glr_dist.tuning.population import Population
from glr_dist.tuning.record import Record
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial import Trial, Turn


class Agenda(Protocol):
    """Hands out turns, and is told what became of them.

    Attributes:
        unit: what a turn is to a person.
        done: turns that have ended.
        total: turns of the whole search.
    """

    unit: str
    done: int
    total: int

    def next(self) -> Turn | None:
        """A turn that may begin now, with the trial's record on the disk; None while others must end first."""
        ...

    def tell(self, record: Record) -> None:
        """What became of a turn."""
        ...


class Independent:
    """Trials that train in one go: first those that were interrupted, then new points.

    Args:
        trial: what they have in common.
        records: of the trials that there are.
    """

    unit = "trial"

    def __init__(self, trial: Trial, records: Sequence[Record]) -> None:
        tune, self._out = trial.search.tune, trial.out
        self._study = Study(tune, trial.search.base.model_dump(mode="json"), records)
        self._waiting = deque(record for record in records if not record.done)
        self._begun = len(records)
        self.done, self.total = sum(record.done for record in records), tune.number

    def next(self) -> Turn | None:
        if self._waiting:
            record = self._waiting.popleft().changed(status="started", reason="")
            self._study.again(record)
        else:
            record = Record(number=self._begun, point=self._study.suggest(self._begun))
            self._begun += 1
        record.keep(self._out)
        return Turn(record.number)

    def tell(self, record: Record) -> None:
        self._study.tell(record)
        self.done += 1


def agenda_of(trial: Trial, records: Sequence[Record]) -> Agenda:
    """What is left of a search.

    Args:
        trial: what its trials have in common.
        records: of the trials that there are.
    """
    return Population(trial, records) if trial.search.tune.algorithm == "pbt" else Independent(trial, records)
