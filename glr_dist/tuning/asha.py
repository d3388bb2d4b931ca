"""Ray Tune's trial scheduler: asynchronous successive halving (ASHA), or none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from glr_dist.runs import RunFolder
from glr_dist.text import one_line
from glr_dist.tuning.objectives import direction, epoch_metrics
from glr_dist.tuning.trial_record import TrialRecord, trial_folder
from glr_dist.tuning.trial_runner import TrialRunner


def scheduler_of(runner: TrialRunner, records: Sequence[TrialRecord]) -> TrialScheduler:
    """Returns the scheduler of a search; ASHA has already seen the trials that are done.

    Args:
        runner: runs the trials.
        records: records of the existing trials.
    """
    tune = runner.search.tune
    if tune.scheduler == "none" or tune.watched is None:
        return FIFOScheduler()
    scheduler: Any = ASHAScheduler(
        time_attr="epoch",
        metric=tune.watched,
        mode=direction(tune.watched)[:3],
        grace_period=tune.grace,
        max_t=runner.search.base.training.epochs + 1,  # a trial in its last epoch has yet to be measured
    )
    for record in records:
        if record.done:
            earlier = SimpleNamespace(trial_id=f"earlier-{record.number}")
            scheduler.on_trial_add(None, earlier)
            for result in _epochs(runner.out, record.number):
                scheduler.on_trial_result(None, earlier, result)
    return scheduler  # type: ignore[no-any-return]


def _epochs(out: Path, number: int) -> list[dict[str, float]]:
    """Returns the metrics of a trial's epochs, with a warning and empty if the file is damaged."""
    folder = RunFolder(trial_folder(out, number))
    try:
        return [{"epoch": epoch["epoch"], **epoch_metrics(epoch)} for epoch in folder.metrics()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"warning: {folder.metrics_file}: asha ignores the trial ({one_line(error)})", file=sys.stderr)
        return []
