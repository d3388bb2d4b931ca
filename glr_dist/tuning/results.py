"""The files of a search: all trials, the best configuration, the Pareto front, and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from glr_dist.config import dump_config
from glr_dist.files import write_atomically
from glr_dist.tuning import plots
from glr_dist.tuning.ranking import best_trial, pareto_front, ranked
from glr_dist.tuning.search_config import Search
from glr_dist.tuning.table import objectives_line
from glr_dist.tuning.trial_record import TrialRecord, trial_folder

TRIALS = "trials.json"
BEST = "best.yaml"
PARETO = "pareto.yaml"
PLOT = "search.png"


def write_results(search: Search, records: Sequence[TrialRecord], out: Path) -> list[Path]:
    """Writes `trials.json`, `best.yaml`, with several objectives `pareto.yaml`, and `search.png`.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: no trial has finished.
    """
    names = search.tune.objectives
    write_trials(search, records, out)
    best = best_trial(records, names)
    comment = f"# Trial {best.number} of {len(records)}: {objectives_line(best, names)}, on the validation images.\n"
    write_atomically(out / BEST, (comment + dump_config(search.config_at(best.point))).encode())
    files = [out / TRIALS, out / BEST]
    if len(names) > 1:
        _write_front(names, records, out)
        files.append(out / PARETO)
    plots.draw(search, records, out / PLOT)
    return [*files, out / PLOT]


def write_trials(search: Search, records: Sequence[TrialRecord], out: Path) -> None:
    """Writes all trials except running ones to `trials.json`, the best first."""
    names = search.tune.objectives
    records = [record for record in records if record.status != "started"]
    front = {record.number for record in pareto_front(records, names)}
    rows = [
        {
            **record.model_dump(mode="json"),
            "pareto": record.number in front,
            "folder": str(trial_folder(out, record.number)),
        }
        for record in ranked(records, names)
    ]
    found = {"objectives": list(names), "trials": rows}
    write_atomically(out / TRIALS, (json.dumps(found, indent=2) + "\n").encode())


def _write_front(names: Sequence[str], records: Sequence[TrialRecord], out: Path) -> None:
    rows = [
        {
            "trial": record.number,
            **{name: record.metrics[name] for name in names},
            "point": record.point,
            "folder": str(trial_folder(out, record.number)),
        }
        for record in pareto_front(records, names)
    ]
    write_atomically(out / PARETO, yaml.safe_dump(rows, sort_keys=False).encode())
