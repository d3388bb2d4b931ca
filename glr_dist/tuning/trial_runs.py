"""The runs of a trial: one, or one per seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glr_dist.config import Config
from glr_dist.tuning.search_config import Search
from glr_dist.tuning.trial_record import trial_folder


def runs_of(search: Search, point: Mapping[str, Any], out: Path, number: int) -> list[tuple[Config, Path]]:
    """Returns the configuration and the folder of each run of a trial.

    A single run is in the trial's folder `trials/NUMBER`; runs of several seeds are in `trials/NUMBER/seed-SEED`.

    Args:
        search: the search.
        point: values of the searched fields.
        out: the search's folder.
        number: the trial's number.

    Raises:
        ConfigError: the configuration is invalid.
    """
    first, folder = search.config_at(point), trial_folder(out, number)
    if search.tune.seeds == 1:
        return [(first, folder)]
    seeds = range(first.seed, first.seed + search.tune.seeds)
    return [(search.config_at({**point, "seed": seed}), folder / f"seed-{seed}") for seed in seeds]


def means(by_seed: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean over the seeds of each metric that all of them have."""
    return {name: statistics.fmean(metrics[name] for metrics in by_seed) for name in _shared(by_seed)}


def margins(by_seed: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the half-width of the 95 % confidence interval of each mean: t · s / √n, Student's t with n − 1 degrees.

    The metrics of n seeds count as independent and normally distributed. With a single seed the result is empty.
    """
    from scipy.stats import t  # here: the import takes a second

    n = len(by_seed)
    if n < 2:
        return {}
    factor = float(t.ppf(0.975, n - 1)) / n**0.5
    return {name: factor * statistics.stdev(metrics[name] for metrics in by_seed) for name in _shared(by_seed)}


def _shared(by_seed: Sequence[Mapping[str, float]]) -> list[str]:
    return [name for name in by_seed[0] if all(name in metrics for metrics in by_seed)] if by_seed else []
