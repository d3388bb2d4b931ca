"""Population-based training of the noise scale: the worst trials are replaced by copies of the best ones.

Every `interval` epochs the worst quarter of the trials is replaced. Each new trial copies the checkpoint of a parent in
the best quarter (exploit) and continues with other scales (explore). Its scales so far are its `noise.schedule`, so
that `glr-dist train` repeats any trial bit for bit from its configuration.

Trials are compared at the same epoch, once all of them are ready. A selection depends only on the seed and on what was
measured, not on the order in which trials finish, and is repeated from the records when a search is resumed. A trial
that fails because of its own numbers is replaced. The population waits for a trial that was lost with its machine, if
necessary until the search is resumed.

Reference: Jaderberg et al., Population Based Training of Neural Networks, 2017, arXiv:1711.09846: truncation selection,
perturbation by a factor, and occasional resampling. Here the factor is drawn from a range instead of two values: trials
share one seed, so two copies with the same perturbation would be identical.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glr_dist.config import dump_config
from glr_dist.errors import CheckpointError
from glr_dist.files import write_atomically
from glr_dist.runs import RunFolder
from glr_dist.streams import Key, Role, generator, uniforms
from glr_dist.training import checkpoint
from glr_dist.tuning.points import SCHEDULE
from glr_dist.tuning.ranges import Range
from glr_dist.tuning.ranking import ranked
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial_record import TrialRecord, trial_folder
from glr_dist.tuning.trial_runner import Interval, TrialRunner

_REPLACED = 4  # one trial in four is replaced
_PERTURBATION = 1.5  # maximum factor by which a scale grows or shrinks
_RESAMPLED = 0.25  # probability that a scale is drawn from its range instead


@dataclass(frozen=True)
class Selection:
    """The outcome of a comparison of all trials.

    Attributes:
        survivors: numbers of the trials that continue.
        parents: records of the best ones, which are copied.
        replaced: numbers of all failed trials, filled up to a quarter with the worst ones.
    """

    survivors: list[int]
    parents: list[TrialRecord]
    replaced: list[int]


class Population:
    """The intervals of a population, a `TrialQueue`.

    Args:
        runner: runs the trials.
        records: records of the existing trials.
    """

    unit = "interval"

    def __init__(self, runner: TrialRunner, records: Sequence[TrialRecord]) -> None:
        self._runner, tune = runner, runner.search.tune
        epochs, size = runner.search.base.training.epochs, tune.number
        self._records = {record.number: record for record in records}
        self._milestones: list[int] = [*range(tune.interval, epochs, tune.interval), epochs]
        self._generation, self._members, self._next = 0, list(range(size)), size
        self._running = 0
        self.total = size * len(self._milestones)
        while self._may_select():
            selection = self._selection()
            if not self._new_numbers(selection) <= self._records.keys():
                break
            self._begin_generation(selection)
        selecting = self._next in self._records  # interrupted during a selection: failed trials are not run again
        self._queued = deque(
            number for number in self._members if not (self._ready(number) or (selecting and self._failed(number)))
        )
        self.done = size * (self._generation + 1) - len(self._queued)

    def ask(self) -> Interval | None:
        if not self._queued and self._may_select():
            self._select()
        if not self._queued:
            return None
        number = self._queued.popleft()
        record = self._records.get(number) or TrialRecord(number=number, point=self._first_point(number))
        self._save(record.updated(status="started", reason=""))
        self._running += 1
        return Interval(number, self._milestone)

    def tell(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        self._running -= 1
        self.done += 1
        if not (self._queued or self._running or self._may_select()):
            self.total = self.done  # the last generation, or one that cannot be completed now

    def _save(self, record: TrialRecord) -> None:
        record.save(self._runner.out)
        self._records[record.number] = record

    # ------------------------------------------------------------ a generation

    @property
    def _milestone(self) -> int:
        """The epoch at which the members of this generation are compared."""
        return self._milestones[self._generation]

    def _ready(self, number: int) -> bool:
        return number in self._records and self._milestone in self._records[number].measured

    def _failed(self, number: int) -> bool:
        return number in self._records and self._records[number].status == "failed"

    def _may_select(self) -> bool:
        """Returns True if all members are ready or failed, at least one is ready, and another generation follows."""
        ready = [self._ready(number) for number in self._members]
        ended = [self._ready(number) or self._failed(number) for number in self._members]
        return self._generation < len(self._milestones) - 1 and all(ended) and any(ready)

    def _first_point(self, number: int) -> dict[str, Any]:
        search = self._runner.search
        return Study(search.tune, search.base.model_dump(mode="json")).suggest(number)

    # ------------------------------------------------------------ selection

    def _select(self) -> None:
        """Replaces the worst trials by copies; repeated after an interruption, it does the same."""
        selection = self._selection()
        new = [self._child(number, selection.parents) for number in sorted(self._new_numbers(selection))]
        for record in new:  # all checkpoints are copied before any parent continues
            self._exploit(record)
        for number in selection.replaced:
            if not self._failed(number):
                self._save(self._records[number].updated(status="stopped"))
        for record in new:
            self._save(record)
        self._begin_generation(selection)
        self._queued = deque(self._members)

    def _selection(self) -> Selection:
        failed = [number for number in self._members if not self._ready(number)]
        ready = [self._records[number] for number in self._members if self._ready(number)]
        then = [record.updated(status="finished", metrics=record.measured[self._milestone]) for record in ready]
        ordered = ranked(then, self._runner.search.tune.objectives)
        count = len(self._members) // _REPLACED
        kept = len(ordered) - max(0, count - len(failed))
        worst = [record.number for record in ordered[kept:]]
        return Selection(sorted(record.number for record in ordered[:kept]), ordered[:count], failed + worst)

    def _new_numbers(self, selection: Selection) -> set[int]:
        return set(range(self._next, self._next + len(selection.replaced)))

    def _begin_generation(self, selection: Selection) -> None:
        new = sorted(self._new_numbers(selection))
        self._members = selection.survivors + new
        self._next += len(new)
        self._generation += 1

    def _exploit(self, record: TrialRecord) -> None:
        """Copies the parent's checkpoint into the folder of a new trial."""
        out, name = self._runner.out, checkpoint.name_of(self._milestone)
        folder, parent = (RunFolder(trial_folder(out, number)) for number in (record.number, record.parent or 0))
        source = parent.checkpoints / name
        if not source.is_file():
            raise CheckpointError(f"{source}: is missing, so that trial {record.number} cannot start from it")
        ((config, _),) = self._runner.runs(record)
        write_atomically(folder.checkpoints / name, source.read_bytes())
        write_atomically(folder.config_file, dump_config(config).encode())

    def _child(self, number: int, parents: Sequence[TrialRecord]) -> TrialRecord:
        """Returns the record of a new trial: a random parent with other scales from this epoch on."""
        search, milestone = self._runner.search, self._milestone
        stream = generator(Key(search.tune.seed, step=number, role=Role.SEARCH))
        which, *chances = uniforms((1 + 2 * len(search.tune.space),), stream).tolist()
        parent = parents[int(which * len(parents))]
        scales = {
            field: _explored(allowed, search.scales(parent.point, field, milestone)[-1], chances.pop(), chances.pop())
            for field, allowed in search.tune.space.items()
        }
        scale = search.config_at(scales).model_dump(mode="json")["noise"]["scale"]
        return TrialRecord(
            number=number,
            point={**parent.point, SCHEDULE: {**parent.point.get(SCHEDULE, {}), str(milestone): scale}},
            status="paused",
            metrics=parent.metrics,
            measured=parent.measured,
            epochs=milestone,
            seconds=parent.seconds,
            parent=parent.number,
        )


def _explored(allowed: Range, scale: float, chance: float, u: float) -> float:
    """Returns a perturbed or resampled scale within its range.

    Args:
        allowed: the range.
        scale: the parent's scale.
        chance: uniform number in [0, 1] that decides between perturbation and resampling.
        u: uniform number in [0, 1] that gives the factor or the quantile.
    """
    if chance < _RESAMPLED:
        return allowed.at(u)
    low, high = allowed.ends()
    return float(min(max(scale * _PERTURBATION ** (2 * u - 1), low), high))
