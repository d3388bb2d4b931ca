"""Ray Tune's trial scheduler: asynchronous successive halving (ASHA), or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

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
            for line in (trial_folder(runner.out, record.number) / "metrics.jsonl").read_text().splitlines():
                epoch = json.loads(line)
                scheduler.on_trial_result(None, earlier, {"epoch": epoch["epoch"], **epoch_metrics(epoch)})
    return scheduler  # type: ignore[no-any-return]
