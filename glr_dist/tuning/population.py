"""Population-based training of the noise scale: trials take turns, the worst give way to perturbed copies of the best.

Every `interval` epochs a quarter of the trials is replaced: as many are born, which go on from a checkpoint of one of
the best quarter with other scales. What a trial has become is its configuration: its scales so far are its
`noise.schedule`, so that `glr-dist train` repeats it bit by bit.

All trials are compared at the same epoch. Who is replaced by whom depends on the seed and on what was measured, not on
which trial was there first, and is found again from the records when a search is resumed. A trial that fails by its own
numbers is replaced; one that was lost to its machine is waited for, if need be until the search is resumed.

Source: Jaderberg et al., Population Based Training of Neural Networks, 2017, arXiv:1711.09846: truncation selection,
perturbation by a factor, and now and then a new draw. The factor is any of a range, not one of two: trials have one
seed, so two copies that are perturbed alike would be the same trial twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glr_dist import config
from glr_dist.files import write_atomically
from glr_dist.streams import Key, Role, generator, uniforms
from glr_dist.training import checkpoint
from glr_dist.tuning.record import Record, folder_of, ordered
from glr_dist.tuning.space import SCHEDULE, Range
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial import Trial, Turn

_QUARTER = 4  # one of so many is replaced
_PERTURBATION = 1.5  # the factor by which a scale grows or shrinks at the most
_RESAMPLED = 0.25  # how often it is drawn from its range instead


@dataclass(frozen=True)
class Selection:
    """What becomes of the trials of a generation.

    Attributes:
        staying: those that go on.
        donors: those of them that are copied.
        replaced: all that have failed, and with them at least a quarter.
    """

    staying: list[int]
    donors: list[Record]
    replaced: list[int]


class Population:
    """The turns of a population.

    Args:
        trial: what the trials have in common.
        records: of those that there are.
    """

    unit = "turn"

    def __init__(self, trial: Trial, records: Sequence[Record]) -> None:
        self._trial, tune = trial, trial.search.tune
        epochs, size = trial.search.base.training.epochs, tune.number
        self._records = {record.number: record for record in records}
        self._milestones: list[int] = [*range(tune.interval, epochs, tune.interval), epochs]
        self._generation, self._living, self._next = 0, list(range(size)), size
        self._running = 0
        self.total = size * len(self._milestones)
        while self._may_select():
            selection = self._selection()
            if not self._numbers(selection) <= self._records.keys():
                break
            self._begin_generation(selection)
        selecting = self._next in self._records  # when it was interrupted; who has failed stays so
        self._waiting = deque(
            number for number in self._living if not (self._reached(number) or (selecting and self._failed(number)))
        )
        self.done = size * (self._generation + 1) - len(self._waiting)

    def next(self) -> Turn | None:
        if not self._waiting and self._may_select():
            self._select()
        if not self._waiting:
            return None
        number = self._waiting.popleft()
        record = self._records.get(number) or Record(number=number, point=self._first_point(number))
        self._keep(record.changed(status="started", reason=""))
        self._running += 1
        return Turn(number, self._milestone)

    def tell(self, record: Record) -> None:
        self._records[record.number] = record
        self._running -= 1
        self.done += 1
        if not (self._waiting or self._running or self._may_select()):
            self.total = self.done  # the last generation, or one that cannot be completed now

    def _keep(self, record: Record) -> None:
        record.keep(self._trial.out)
        self._records[record.number] = record

    # ------------------------------------------------------------ a generation

    @property
    def _milestone(self) -> int:
        """After how many epochs the trials of this generation are compared."""
        return self._milestones[self._generation]

    def _reached(self, number: int) -> bool:
        return number in self._records and self._milestone in self._records[number].measured

    def _failed(self, number: int) -> bool:
        return number in self._records and self._records[number].status == "failed"

    def _may_select(self) -> bool:
        """Whether all turns of a generation are over, another one follows, and there is one to go on from."""
        reached = [self._reached(number) for number in self._living]
        over = [self._reached(number) or self._failed(number) for number in self._living]
        return self._generation < len(self._milestones) - 1 and all(over) and any(reached)

    def _first_point(self, number: int) -> dict[str, Any]:
        search = self._trial.search
        return Study(search.tune, search.base.model_dump(mode="json")).suggest(number)

    # ------------------------------------------------------------ selection

    def _select(self) -> None:
        """Replaces the worst trials by copies; done again after an interruption, it does the same."""
        out, selection = self._trial.out, self._selection()
        born = [self._successor(number, selection.donors) for number in sorted(self._numbers(selection))]
        for record in born:  # first all folders: no donor has gone on yet
            name = checkpoint.name_of(self._milestone)
            folder, donor = folder_of(out, record.number), folder_of(out, record.donor or 0)
            write_atomically(folder / "checkpoints" / name, (donor / "checkpoints" / name).read_bytes())
            write_atomically(folder / "config.yaml", config.dump_config(self._trial.settings(record)).encode())
        for number in selection.replaced:
            if not self._failed(number):
                self._keep(self._records[number].changed(status="stopped"))
        for record in born:
            self._keep(record)
        self._begin_generation(selection)
        self._waiting = deque(self._living)

    def _selection(self) -> Selection:
        failed = [number for number in self._living if not self._reached(number)]
        reached = [self._records[number] for number in self._living if self._reached(number)]
        then = [r.changed(status="finished", metrics=r.measured[self._milestone]) for r in reached]
        ranked = ordered(then, self._trial.search.tune.objectives)
        count = len(self._living) // _QUARTER
        kept = len(ranked) - max(0, count - len(failed))
        worst = [record.number for record in ranked[kept:]]
        return Selection(sorted(record.number for record in ranked[:kept]), ranked[:count], failed + worst)

    def _numbers(self, selection: Selection) -> set[int]:
        """Of the trials that are born."""
        return set(range(self._next, self._next + len(selection.replaced)))

    def _begin_generation(self, selection: Selection) -> None:
        born = sorted(self._numbers(selection))
        self._living = selection.staying + born
        self._next += len(born)
        self._generation += 1

    def _successor(self, number: int, donors: Sequence[Record]) -> Record:
        search, milestone = self._trial.search, self._milestone
        stream = generator(Key(search.tune.seed, step=number, role=Role.SEARCH))
        whose, *chances = uniforms((1 + 2 * len(search.tune.space),), stream).tolist()
        donor = donors[int(whose * len(donors))]
        scales = {
            field: _explored(allowed, search.scales(donor.point, field, milestone)[-1], chances.pop(), chances.pop())
            for field, allowed in search.tune.space.items()
        }
        scale = search.settings(scales).model_dump(mode="json")["noise"]["scale"]
        return Record(
            number=number,
            point={**donor.point, SCHEDULE: {**donor.point.get(SCHEDULE, {}), str(milestone): scale}},
            status="paused",
            metrics=donor.metrics,
            measured=donor.measured,
            epochs=milestone,
            seconds=donor.seconds,
            donor=donor.number,
        )


def _explored(allowed: Range, scale: float, chance: float, where: float) -> float:
    """Another scale within its range: drawn anew, or perturbed."""
    if chance < _RESAMPLED:
        return allowed.at(where)
    low, high = allowed.ends()
    return float(min(max(scale * _PERTURBATION ** (2 * where - 1), low), high))
