"""What is known of a trial, beside its folder: the truth that a search is resumed from. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glr_dist.config import Section
from glr_dist.files import write_atomically
from glr_dist.tuning.objectives import better_first


class Record(Section):
    """A trial.

    Attributes:
        number: names it.
        point: the values of the searched fields.
        status: `started`; `paused` between two turns; `finished`, with all objectives; `stopped` by the scheduler, or
            replaced by a better one; `failed` by its settings or its numbers; `lost` to its process, its disk or the
            cluster.
        metrics: figures on the validation images; of a stopped trial, the last ones.
        measured: the same at the end of each turn, by epoch, where trials take turns.
        epochs: that it trained.
        seconds: that it trained, validation included.
        reason: why it failed or was lost, in a line.
        donor: the trial that it goes on from.
    """

    number: int
    point: dict[str, Any]
    status: Literal["started", "paused", "finished", "stopped", "failed", "lost"] = "started"
    metrics: dict[str, float] = Field(default_factory=dict)
    measured: dict[int, dict[str, float]] = Field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    reason: str = ""
    donor: int | None = None

    @property
    def done(self) -> bool:
        """Whether it is never run again; one that failed or was lost is, when the search is resumed."""
        return self.status in ("finished", "stopped")

    def changed(self, **values: Any) -> Record:
        """Another record with other values."""
        return self.model_copy(update=values)

    def keep(self, out: Path) -> None:
        """Writes it beside the trial's folder, whole or not at all."""
        write_atomically(_file(out, self.number), (self.model_dump_json(indent=2) + "\n").encode())


def folder_of(out: Path, number: int) -> Path:
    """The folder of a trial: that of an ordinary run."""
    return out / "trials" / str(number)


def _file(out: Path, number: int) -> Path:
    return folder_of(out, number).with_suffix(".json")


def read(out: Path, number: int) -> Record:
    """The record of a trial."""
    return Record.model_validate_json(_file(out, number).read_bytes())


def read_all(out: Path) -> list[Record]:
    """The records of all trials that were begun, by number."""
    numbers = sorted(int(path.stem) for path in (out / "trials").glob("[0-9]*.json"))
    return [read(out, number) for number in numbers]


def ordered(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """Finished trials first, the best by the first objective at the top (ties: by the next one, then by number)."""

    def key(record: Record) -> tuple[bool, list[float], int]:
        known = record.metrics
        values = [better_first(name, known[name]) if name in known else math.inf for name in objectives]
        return record.status != "finished", values, record.number

    return sorted(records, key=key)


def front(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The finished trials that no other one beats: as good in all objectives and better in one (Pareto)."""
    finished = [record for record in records if record.status == "finished"]
    points = {r.number: [better_first(name, r.metrics[name]) for name in objectives] for r in finished}

    def beaten(point: Sequence[float]) -> bool:
        return any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points.values()
        )

    return [record for record in ordered(finished, objectives) if not beaten(points[record.number])]
