"""The order of trials by their objectives, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence

from glr_dist.errors import ConfigError
from glr_dist.tuning.objectives import cost
from glr_dist.tuning.trial_record import TrialRecord


def ranked(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Sorts trials: finished ones first, then by the first objective, the next objectives, and the number."""

    def key(record: TrialRecord) -> tuple[bool, list[float], int]:
        known = record.metrics
        costs = [cost(name, known[name]) if name in known else math.inf for name in objectives]
        return record.status != "finished", costs, record.number

    return sorted(records, key=key)


def best_trial(records: Sequence[TrialRecord], objectives: Sequence[str]) -> TrialRecord:
    """Returns the finished trial that is best by the first objective.

    Raises:
        ConfigError: no trial has finished.
    """
    first = ranked(records, objectives)[0]
    if first.status != "finished":
        failed = next((record for record in records if record.reason), first)
        raise ConfigError(f"no trial finished; trial {failed.number}: {failed.reason or failed.status}")
    return first


def pareto_front(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Returns the finished trials that no other dominates: as good in all objectives and better in one."""
    finished = [record for record in records if record.status == "finished"]
    costs = {record.number: [cost(name, record.metrics[name]) for name in objectives] for record in finished}

    def dominated(point: Sequence[float]) -> bool:
        return any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in costs.values()
        )

    return [record for record in ranked(finished, objectives) if not dominated(costs[record.number])]
