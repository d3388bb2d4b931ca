"""Trials that an earlier process left in a search's folder, checked before the search is resumed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from glr_dist.errors import ConfigError
from glr_dist.runs import RunFolder
from glr_dist.text import one_line, shown
from glr_dist.training.warm_start import adopted
from glr_dist.tuning.algorithms import ALGORITHMS
from glr_dist.tuning.points import SCHEDULE
from glr_dist.tuning.search_config import Search
from glr_dist.tuning.trial_record import TrialRecord, read_records, stray_files, trial_folder
from glr_dist.tuning.trial_runs import runs_of


def stored_trials(search: Search, out: Path) -> list[TrialRecord]:
    """Returns the records of the trials in a folder; a warning on stderr names files that are not records.

    Raises:
        ConfigError: a record is damaged or belongs to another search, or a trial was trained with another
            configuration than the search has at its point.
    """
    for path in stray_files(out):
        print(f"warning: {path}: is not the record of a trial; ignored", file=sys.stderr)
    records = read_records(out)
    for record in records:
        try:
            _check_record(search, record, records)
        except ConfigError as error:
            raise ConfigError(
                f"{trial_folder(out, record.number)}.json: does not fit the search ({one_line(error)}); "
                "restore it, or start another search without --resume"
            ) from None
        for config, folder in runs_of(search, record.point, out, record.number):
            if (run := RunFolder(folder)).exists:
                run.check_resumable(adopted(run.config(), config, folder))
    return records


def _check_record(search: Search, record: TrialRecord, records: Sequence[TrialRecord]) -> None:
    tune, epochs = search.tune, search.config_at(record.point).training.epochs
    children = ALGORITHMS[tune.algorithm].population
    if record.point.keys() - ({SCHEDULE} if children else set()) != tune.space.keys():
        raise ConfigError(f"its fields are {', '.join(record.point)}")
    for field, allowed in tune.space.items():
        if not allowed.contains(record.point[field]):
            raise ConfigError(f"{field}: {shown(record.point[field])} is outside {shown(allowed.described())}")
    if record.epochs > epochs or any(not 0 < epoch <= epochs for epoch in record.measured):
        raise ConfigError(f"it has more than {epochs} epochs")
    measurements = [*record.measured.values(), *([record.metrics] if record.status == "finished" else [])]
    for name in tune.objectives:
        if any(name not in metrics for metrics in measurements):
            raise ConfigError(f"'{name}' is missing")
    if len(record.by_seed) > tune.seeds or (record.status == "finished" and len(record.by_seed) != tune.seeds > 1):
        raise ConfigError(f"it has {len(record.by_seed)} seeds, not {tune.seeds}")
    if record.parent is not None and not (
        children and record.parent < record.number and any(other.number == record.parent for other in records)
    ):
        raise ConfigError(f"its parent {record.parent} is not a trial before it")
