"""Population-based training of the noise scale: trials take turns, the worst give way to changed copies of the best.

Every `interval` epochs a quarter of the trials ends; as many are born, which go on from a checkpoint of one of the best
quarter with other scales. What a trial has become is its configuration: its scales so far are its `noise.schedule`, so
that `glr-dist train` repeats it bit by bit.

All trials are compared at the same epoch. Who gives way to whom depends on the seed and on what was measured, not on
which trial was there first, and is found again from the records when a search is resumed.

Source: Jaderberg et al., Population Based Training of Neural Networks, 2017, arXiv:1711.09846: truncation selection,
perturbation by a factor, and now and then a new draw. The factor is any of a range, not one of two: trials have one
seed, so two copies that are changed alike would be the same trial twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from glr_dist import config
from glr_dist.files import write_atomically
from glr_dist.noise import Key, Role, generator, uniforms
from glr_dist.training import checkpoint
from glr_dist.tuning.record import Record, folder_of, ordered
from glr_dist.tuning.space import Range
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial import Trial, Turn

_SHARE = 4  # one of so many gives way
_FACTOR = 1.5  # by which a scale grows or shrinks at the most
_ANEW = 0.25  # how often it is drawn from its range instead
SCHEDULE = "noise.schedule"


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
        self._ends: list[int] = [*range(tune.interval, epochs, tune.interval), epochs]
        self._turn, self._living, self._born = 0, list(range(size)), size
        self.total = size * len(self._ends)
        while self._turn < len(self._ends) - 1 and self._all_ended():
            begun = self._successors()
            if not begun.keys() <= self._records.keys():
                break
            self._go_on(begun)
        selected = self._born in self._records  # a selection was under way: who has failed stays so
        self._waiting = deque(
            number for number in self._living if not (self._reached(number) or (selected and self._failed(number)))
        )
        self.done = size * (self._turn + 1) - len(self._waiting)

    def next(self) -> Turn | None:
        if not self._waiting and self._turn < len(self._ends) - 1 and self._all_ended():
            self._select()
        if not self._waiting:
            return None
        number = self._waiting.popleft()
        record = self._records.get(number) or Record(number=number, point=self._first_point(number))
        self._keep(record.changed(status="started", reason=""))
        return Turn(number, self._ends[self._turn])

    def tell(self, record: Record) -> None:
        self._records[record.number] = record
        self.done += 1
        if all(self._failed(number) for number in self._living):
            self.total = self.done  # nobody is left to go on from

    def _keep(self, record: Record) -> None:
        record.keep(self._trial.out)
        self._records[record.number] = record

    # ------------------------------------------------------------ a generation

    @property
    def _end(self) -> int:
        return self._ends[self._turn]

    def _reached(self, number: int) -> bool:
        return number in self._records and self._end in self._records[number].measured

    def _failed(self, number: int) -> bool:
        return number in self._records and self._records[number].status == "failed"

    def _all_ended(self) -> bool:
        ended = [self._reached(number) or self._failed(number) for number in self._living]
        return all(ended) and any(self._reached(number) for number in self._living)

    def _first_point(self, number: int) -> dict[str, Any]:
        search = self._trial.search
        return Study(search.tune, search.base.model_dump(mode="json")).suggest(number)

    # ------------------------------------------------------------ selection

    def _select(self) -> None:
        """Ends the worst trials and begins the copies; done again, it changes nothing."""
        out, born = self._trial.out, self._successors()
        for record in born.values():  # first all folders: no donor has gone on yet
            name = checkpoint.name_of(self._end)
            folder, donor = folder_of(out, record.number), folder_of(out, record.donor or 0)
            write_atomically(folder / "checkpoints" / name, (donor / "checkpoints" / name).read_bytes())
            settings = self._trial.settings(record.point)
            write_atomically(folder / "config.yaml", config.dump(settings).encode())
        *_, ended = self._ranked()
        for number in ended:
            if not self._failed(number):
                self._keep(self._records[number].changed(status="stopped"))
        for record in born.values():
            self._keep(record)
        self._go_on(born)
        self._waiting = deque(self._living)

    def _successors(self) -> dict[int, Record]:
        """The trials that are born now, by number."""
        _, donors, ended = self._ranked()
        return {number: self._successor(number, donors) for number in range(self._born, self._born + len(ended))}

    def _go_on(self, born: Mapping[int, Record]) -> None:
        """To the next turn, with those that are born."""
        staying, *_ = self._ranked()
        self._living = [*staying, *born]
        self._born += len(born)
        self._turn += 1

    def _ranked(self) -> tuple[list[int], list[Record], list[int]]:
        """Who stays, who is copied, and who ends now: all that have failed, and at least a quarter."""
        failed = [number for number in self._living if not self._reached(number)]
        reached = [self._records[number] for number in self._living if self._reached(number)]
        then = [r.changed(status="finished", metrics=r.measured[self._end]) for r in reached]
        ranked = ordered(then, self._trial.search.tune.objectives)
        count = len(self._living) // _SHARE
        worst = max(0, count - len(failed))
        staying = sorted(record.number for record in ranked[: len(ranked) - worst])
        return staying, ranked[:count], failed + [record.number for record in ranked[len(ranked) - worst :]]

    def _successor(self, number: int, donors: Sequence[Record]) -> Record:
        search = self._trial.search
        stream = generator(Key(search.tune.seed, step=number, role=Role.SEARCH))
        whose, *chances = uniforms((1 + 2 * len(search.tune.space),), stream).tolist()
        donor = donors[int(whose * len(donors))]
        scales = {
            field: _changed(allowed, scale_at(donor.point, field, self._end), chances.pop(), chances.pop())
            for field, allowed in search.tune.space.items()
        }
        scale = search.settings(scales).model_dump(mode="json")["noise"]["scale"]
        schedule = {**donor.point.get(SCHEDULE, {}), str(self._end): scale}
        return Record(
            number=number,
            point={**donor.point, SCHEDULE: schedule},
            status="paused",
            metrics=donor.metrics,
            measured=donor.measured,
            epochs=self._end,
            seconds=donor.seconds,
            donor=donor.number,
        )


def scale_at(point: Mapping[str, Any], field: str, epochs: int) -> float:
    """The scale that a field names, when so many epochs are done.

    Args:
        point: of a trial.
        field: `noise.scale`, or `noise.scale.PATTERN`.
        epochs: that are done.
    """
    passed = [int(epoch) for epoch in point.get(SCHEDULE, {}) if int(epoch) <= epochs]
    if not passed:
        return float(point[field])
    scale, pattern = point[SCHEDULE][str(max(passed))], field.removeprefix("noise.scale").removeprefix(".")
    return float(scale[pattern] if pattern else scale)


def _changed(allowed: Range, scale: float, chance: float, where: float) -> float:
    """Another scale within its range."""
    if chance < _ANEW:
        return allowed.at(where)
    low, high = allowed.ends()
    return float(min(max(scale * _FACTOR ** (2 * where - 1), low), high))
