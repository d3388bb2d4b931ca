"""The files of a search: all trials, the best configuration, the Pareto front, and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from glr_dist.config import dump_config
from glr_dist.figures import draw, pdf_of
from glr_dist.files import write_atomically
from glr_dist.tuning.plots import search_figure
from glr_dist.tuning.ranking import best_trial, pareto_front, ranked
from glr_dist.tuning.search_config import Search
from glr_dist.tuning.table import objectives_line
from glr_dist.tuning.trial_record import TrialRecord, trial_folder

TRIALS = "trials.json"
BEST = "best.yaml"
PARETO = "pareto.yaml"
PLOT = "search.png"


def write_results(search: Search, records: Sequence[TrialRecord], out: Path) -> list[Path]:
    """Writes `trials.json`, `best.yaml`, with several objectives `pareto.yaml`, and last `search.png` and `.pdf`.

    Returns:
        The paths of the files. A plot that cannot be drawn is a warning on stderr.

    Raises:
        ConfigError: no trial has finished.
    """
    names = search.tune.objectives
    write_trials(search, records, out)
    best = best_trial(records, names)
    seeds = f" (mean of {search.tune.seeds} seeds ± 95 % confidence interval)" if search.tune.seeds > 1 else ""
    measured = f"{objectives_line(best, names)}{seeds}, on the validation images"
    comment = f"# Trial {best.number} of {len(records)}: {measured}.\n"
    write_atomically(out / BEST, (comment + dump_config(search.config_at(best.point))).encode())
    files = [out / TRIALS, out / BEST]
    if len(names) > 1:
        _write_front(names, records, out)
        files.append(out / PARETO)
    if draw(out / PLOT, lambda: search_figure(search, records)):
        files += [out / PLOT, pdf_of(out / PLOT)]
    return files


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
