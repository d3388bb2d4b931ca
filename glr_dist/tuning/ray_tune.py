"""Runs the trials of a search on Ray Tune.

The trials' own records are the state of the search, not Ray Tune's snapshots: Ray Tune takes those every few seconds
and copies them file by file, so trials would be lost with a killed driver.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.trainable.function_trainable import wrap_function
from ray.util.placement_group import remove_placement_group

from glr_dist.errors import ClusterError
from glr_dist.execution.cluster import bundle_of, connected, fitting, reserve, resources
from glr_dist.execution.orphans import end_with_raylet
from glr_dist.tuning.asha import scheduler_of
from glr_dist.tuning.progress import SearchProgress
from glr_dist.tuning.search_config import Tune
from glr_dist.tuning.searcher import MAX_RESTARTS, QueueSearcher
from glr_dist.tuning.trial_queue import TrialQueue
from glr_dist.tuning.trial_record import TrialRecord
from glr_dist.tuning.trial_runner import Interval, TrialRunner

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output engine prints even at verbosity 0
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end the search as if it were complete
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial keeps its own metrics
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # interval of snapshots, which nothing reads
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # time for a stopped trial to close its files
}


def run_trials(runner: TrialRunner, queue: TrialQueue, records: Sequence[TrialRecord]) -> None:
    """Runs the remaining trials of a search.

    Args:
        runner: runs the trials.
        queue: the remaining intervals.
        records: records of the existing trials.

    Raises:
        ClusterError: the cluster has no room for a trial.
    """
    _quiet_ray_tune()
    settings, storage = runner.search.tune, runner.out / ".tune"
    bundles = _bundles(settings)
    cpus = sum(bundle["CPU"] for bundle in bundles)
    whole = bundle_of(cpus, settings.gpus_per_trial)
    with connected(cpus * (settings.concurrent or 1)) as own:
        _check_room(bundles, runner.search.base.execution.placement_timeout, own=own)
        fits = fitting(whole) if own else None  # a shared cluster may grow
        shutil.rmtree(storage, ignore_errors=True)
        with SearchProgress(runner, queue, records) as progress:
            tune_config = tune.TuneConfig(
                search_alg=QueueSearcher(runner, queue, progress),
                scheduler=scheduler_of(runner, records),
                num_samples=queue.total - queue.done,
                max_concurrent_trials=settings.concurrent or fits,
                reuse_actors=True,  # importing torch takes longer than a small trial
            )
            try:
                tune.Tuner(_trainable(runner, bundles), tune_config=tune_config, run_config=_run_config(storage)).fit()
            finally:
                shutil.rmtree(storage, ignore_errors=True)


def _quiet_ray_tune() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _bundles(settings: Tune) -> list[dict[str, float]]:
    """Returns the resources of each process of a trial: its actors, or the trial itself."""
    return [{"CPU": 1.0}] * settings.actors_per_trial or [bundle_of(settings.cpus_per_trial, settings.gpus_per_trial)]


def _trainable(runner: TrialRunner, bundles: Sequence[Mapping[str, float]]) -> Any:
    """Returns the trial as a function for Ray Tune, with its resources; the trial of actors takes no CPU itself."""
    head = [{"CPU": 0.0}] if runner.search.tune.actors_per_trial else []
    # The runner is a parameter, which stays in memory: its tracking URI may hold a password.
    train = tune.with_parameters(_train, runner=runner)
    resources = tune.PlacementGroupFactory([*head, *map(dict, bundles)])
    trainable = wrap_function(tune.with_resources(train, resources))
    trainable.__name__ = trainable.__qualname__ = "Trial"  # in Ray's dashboard, instead of ImplicitFunc
    return trainable


def _train(config: dict[str, Any], runner: TrialRunner) -> None:
    end_with_raylet()
    runner.run(Interval(**config), tune.report)


def _run_config(storage: Path) -> tune.RunConfig:
    return tune.RunConfig(
        name="search",
        storage_path=str(storage),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
    )


def _check_room(bundles: Sequence[Mapping[str, float]], timeout: float, *, own: bool) -> None:
    """Checks that the cluster has room for one trial; Ray Tune itself would wait forever."""
    try:
        remove_placement_group(reserve(len(bundles), bundles[0], timeout, own=own))
    except ClusterError:
        key = "actors_per_trial" if len(bundles) > 1 else "gpus_per_trial" if "GPU" in bundles[0] else "cpus_per_trial"
        each = " and ".join(f"{amount:g} {resource}" for resource, amount in bundles[0].items())
        raise ClusterError(
            f"tune.{key}: no room for a trial of {len(bundles)} x {each}, "
            f"the cluster has {resources()}; lower it, or raise execution.placement_timeout ({timeout:g} s)"
        ) from None
