"""The record of a trial, beside its folder: the state from which a search is resumed. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field

from glr_dist.config import Section, build
from glr_dist.errors import ConfigError
from glr_dist.files import write_atomically
from glr_dist.text import one_line, shown


class TrialRecord(Section):
    """The state of a trial.

    Attributes:
        number: the trial's number, which names its folder.
        point: values of the searched fields.
        status: `started`; `paused` between two intervals; `finished`, with all objectives; `stopped` by the scheduler
            or replaced in a population; `failed` because of its configuration or its numbers; `lost` with its process,
            disk or cluster.
        metrics: metrics on the validation images; of a stopped trial, the last ones.
        by_seed: metrics of each seed, if the search trains each trial with several; `metrics` are their means.
        margins: half-widths of the 95 % confidence intervals of these means.
        measured: metrics at the end of each interval, by epoch, in a population.
        epochs: number of epochs trained, of each run.
        seconds: seconds of training and validation.
        reason: one line that says why the trial failed or was lost.
        parent: in a population, the trial whose checkpoint this one started from.
    """

    number: int = Field(ge=0)
    point: dict[str, Any]
    status: Literal["started", "paused", "finished", "stopped", "failed", "lost"] = "started"
    metrics: dict[str, float] = Field(default_factory=dict)
    by_seed: dict[int, dict[str, float]] = Field(default_factory=dict)
    margins: dict[str, float] = Field(default_factory=dict)
    measured: dict[int, dict[str, float]] = Field(default_factory=dict)
    epochs: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    reason: str = ""
    parent: int | None = Field(None, validation_alias=AliasChoices("parent", "donor"))  # "donor" until 0.4.0

    @property
    def done(self) -> bool:
        """True for a trial that never runs again; failed and lost trials run again when the search is resumed."""
        return self.status in ("finished", "stopped")

    def updated(self, **values: Any) -> TrialRecord:
        """Returns a copy with other values."""
        return self.model_copy(update=values)

    def save(self, out: Path) -> None:
        """Writes the record atomically to `trials/NUMBER.json` in the search's folder."""
        write_atomically(_file(out, self.number), (self.model_dump_json(indent=2) + "\n").encode())


def trial_folder(out: Path, number: int) -> Path:
    """Returns the folder of a trial, which is an ordinary run's folder."""
    return out / "trials" / str(number)


def read_record(out: Path, number: int) -> TrialRecord:
    """Reads the record of a trial.

    Raises:
        ConfigError: the file is missing, damaged, or belongs to another trial.
    """
    path = _file(out, number)
    try:
        if not path.is_file():
            raise ValueError("it is not a file")
        values = json.loads(path.read_bytes())
        if not isinstance(values, Mapping):
            raise ValueError(f"it holds {shown(values)}")
        record = build(TrialRecord, values)
        if record.number != number:
            raise ValueError(f"it is the record of trial {record.number}")
    except (OSError, ValueError, RecursionError) as error:
        remedy = f"restore it, or remove it and the folder {path.stem} beside it"
        raise ConfigError(f"{path}: is damaged ({one_line(error, 200)}); {remedy}") from None
    return record


def read_records(out: Path) -> list[TrialRecord]:
    """Reads the records of all trials in a search's folder, in order of their numbers.

    Raises:
        ConfigError: a record is damaged.
    """
    files = _files(out)
    return [
        read_record(out, number) for number in sorted(number for number in map(_number, files) if number is not None)
    ]


def stray_files(out: Path) -> list[Path]:
    """Returns the JSON files beside the records whose names are not numbers, e.g. `trials/9x.json`."""
    return sorted(path for path in _files(out) if _number(path) is None)


def _files(out: Path) -> list[Path]:
    return [path for path in (out / "trials").glob("*.json") if not path.name.startswith(".")]


def _number(path: Path) -> int | None:
    name = path.stem
    return int(name) if name.isascii() and name.isdecimal() and name == str(int(name[:9])) else None


def _file(out: Path, number: int) -> Path:
    return trial_folder(out, number).with_suffix(".json")
