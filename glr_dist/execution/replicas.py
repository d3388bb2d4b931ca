"""`replicas`: a group of Ray Train workers, started again when one of them fails, and what they have to tell."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayActorError
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import distributed

from glr_dist import errors
from glr_dist.config import Execution
from glr_dist.errors import ClusterError, ConfigError, UserError
from glr_dist.execution.all_reduce import LostReplicaError, OtherReplicaError
from glr_dist.execution.cluster import bundle_of, connected, fitting, reserve, room
from glr_dist.files import write_atomically
from glr_dist.text import one_line

A = TypeVar("A")

_LOOK = 0.2  # seconds between two looks at a run's progress
_PATIENCE = 15.0  # seconds for Ray Train to end its workers
_POLL = 0.5  # seconds between two looks of Ray Train at its workers
_MISTAKE, _FAILURES = "mistake-{}.json", "failures.jsonl"


def check_workers(execution: Execution, batch: int, example_block: int) -> int:
    """The most workers that a batch has example blocks for.

    Args:
        execution: the configuration.
        batch: examples of a batch.
        example_block: examples of a block.

    Raises:
        ConfigError: there are fewer blocks than workers, or the device is not what the workers are given.
    """
    blocks = -(-batch // example_block)
    if (workers := execution.actors or 1) > blocks:
        advice = f"set estimator.example_block to at most {batch // workers}" if workers <= batch else "set it lower"
        raise ConfigError(
            f"execution.actors: {workers} replicas need as many example blocks, but a batch of {batch} examples has "
            f"{blocks} of estimator.example_block={example_block}; {advice}, or actors to at most "
            f"{blocks if workers <= batch else batch}"
        )
    given = "cuda" if execution.gpus_per_actor else "cpu"
    if execution.device not in ("auto", given):
        raise ConfigError(
            f"execution.device: {execution.device!r} is not what replicas with gpus_per_actor="
            f"{execution.gpus_per_actor:g} compute on; set it to 'auto', or change gpus_per_actor"
        )
    return blocks


def run_replicas(
    function: Callable[[torch.device], None], execution: Execution, most: int, folder: Path, watch: Callable[[], None]
) -> None:
    """Runs a function in every worker of a Ray Train group, which is started again when one of them fails.

    The function must continue by itself from what it has kept. A local Ray is started, and ended after, where none
    runs; with RAY_ADDRESS set that cluster is used. On several machines `folder` must be shared by all of them.

    Args:
        function: `function(device)`, the same in all workers; `torch.distributed` joins them.
        execution: the configuration: actors, cpus_per_actor, gpus_per_actor, placement_timeout, ….
        most: the most workers there is work for.
        folder: for the time of the run, what the workers have to tell; it is deleted at the end.
        watch: called several times a second in this process, and once at the end.

    Raises:
        UserError, FloatingPointError: a worker met it; it is not tried again.
        ClusterError: the cluster has no place for the workers, or they failed more than `max_failures` times.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a run whose driver was killed
    folder.mkdir(parents=True)
    try:
        with connected(execution.cpus_per_actor * (execution.actors or 1)) as local:
            bundle = bundle_of(execution.cpus_per_actor, execution.gpus_per_actor)
            workers = execution.actors or max(1, min(most, fitting(bundle) if local else room(bundle)))
            # Ray Train would wait for ever for its own.
            remove_placement_group(reserve(workers, bundle, execution.placement_timeout, own=local))
            reason = _fitted(partial(_fit, function, execution, workers, folder), execution, folder, watch, local=local)
        _raise_mistake(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if reason:
        raise ClusterError(
            f"the replicas failed more often than execution.max_failures={execution.max_failures} allows, at last by "
            f"{reason}; continue with --resume"
        )


def _fitted(
    fit: Callable[[], str | None], execution: Execution, folder: Path, watch: Callable[[], None], *, local: bool
) -> str | None:
    """Runs Ray Train to its end; returns why it failed.

    It runs in a process of its own: its handler of Ctrl-C would end this one with code 0.
    """
    environment = {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_POLL),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(execution.hang_timeout),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(execution.placement_timeout),
    }
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_retries": 0,
        "scheduling_strategy": here,
        "runtime_env": {"env_vars": environment},
    }
    task: Any = ray.remote(**options)(_call)
    running = task.remote(fit)
    patience = math.inf
    try:
        while time.monotonic() < patience and not ray.wait([running], timeout=_LOOK)[0]:
            watch()
            if patience == math.inf and _mistakes(folder):  # the workers are about to end
                patience = time.monotonic() + _PATIENCE
        watch()
        if not _mistakes(folder):
            reason: str | None = ray.get(running)
            return reason
        return None
    except ray.exceptions.RayError as error:
        return f"the end of Ray Train itself ({one_line(error)})"
    finally:
        # Ray Train hears Ctrl-C and ends its workers. A Ray of this process's own ends with all that is in it.
        if not local and not ray.wait([running], timeout=0)[0]:
            ray.cancel(running)
            if not ray.wait([running], timeout=_PATIENCE)[0]:
                ray.cancel(running, force=True)


def _call(fit: Callable[[], A]) -> A:
    """What Ray runs must be a plain function."""
    return fit()


def _fit(function: Callable[[torch.device], None], execution: Execution, workers: int, folder: Path) -> str | None:
    """Ray Train's trainer, in a process of its own; returns why it failed."""
    import ray.train
    import ray.train.torch

    train: Any = ray.train  # its type hints are those of Train V1

    class Failures(train.UserCallback):  # type: ignore[misc]
        """Ray Train's controller calls it; it runs on the driver's machine."""

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            with (folder / _FAILURES).open("a") as file:
                file.write(json.dumps(_reason(worker_exceptions)) + "\n")

    bundle = bundle_of(execution.cpus_per_actor, execution.gpus_per_actor)
    trainer = train.torch.TorchTrainer(
        partial(_work, function, folder),
        scaling_config=train.ScalingConfig(
            num_workers=workers, use_gpu=execution.gpus_per_actor > 0, resources_per_worker=bundle
        ),
        # NCCL takes no two processes on one GPU.
        torch_config=train.torch.TorchConfig(backend="nccl" if execution.gpus_per_actor >= 1 else "gloo"),
        run_config=train.RunConfig(
            name="ray_train",
            storage_path=str(folder),
            failure_config=train.FailureConfig(
                max_failures=execution.max_failures, controller_failure_limit=execution.max_failures
            ),
            callbacks=[Failures()],
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        return _reason(getattr(error, "worker_failures", None) or {-1: getattr(error, "controller_failure", error)})
    return None


def _work(function: Callable[[torch.device], None], folder: Path) -> None:
    """In a worker: what a person must mend goes to the driver, anything else to Ray Train, which starts again."""
    from ray.train.torch import get_device

    try:
        function(get_device())
    except OtherReplicaError:
        return
    except (UserError, FloatingPointError) as error:
        content = json.dumps({"kind": type(error).__name__, "message": str(error)})
        write_atomically(folder / _MISTAKE.format(distributed.get_rank()), content.encode())


def _mistakes(folder: Path) -> list[Path]:
    return sorted(folder.glob(_MISTAKE.format("*")))


def _raise_mistake(folder: Path) -> None:
    """Raises what a worker met, in this process."""
    for path in _mistakes(folder):
        mistake = json.loads(path.read_text())
        kind = FloatingPointError if mistake["kind"] == "FloatingPointError" else getattr(errors, mistake["kind"])
        raise kind(mistake["message"])


def failures(folder: Path) -> list[str]:
    """Why the workers failed, each time that they did."""
    try:
        return [json.loads(line) for line in (folder / _FAILURES).read_text().splitlines()]
    except FileNotFoundError:
        return []


def _reason(failed: Mapping[int, Exception]) -> str:
    """The cause among the errors of several workers, or of Ray Train (-1): one that ends fails the others' sums."""
    causes = {rank: getattr(error, "_base_exc", error) for rank, error in failed.items()}  # without its traceback
    rank = min(causes, key=lambda rank: (isinstance(causes[rank], LostReplicaError), rank))
    cause = causes[rank]
    died = isinstance(cause, RayActorError) or type(cause).__name__ == "WorkerHealthCheckFailedError"  # Ray Train's own
    said = "its process died or hangs" if died else f"{type(cause).__name__}: {one_line(cause)}"
    return f"worker {rank}: {said}" if rank >= 0 else f"Ray Train ({said})"
