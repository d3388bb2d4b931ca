"""`replicas`: runs a group of Ray Train workers, restarts it when a worker fails, and collects errors."""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
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
from glr_dist.execution.orphans import end_with_raylet
from glr_dist.execution.software import Software, check_same, node_name, software
from glr_dist.files import write_atomically
from glr_dist.text import one_line

A = TypeVar("A")

_WATCH_INTERVAL = 0.2  # seconds between two calls of `watch`
_END_TIMEOUT = 15.0  # seconds that Ray Train has to end its workers
_HEALTH_CHECK_INTERVAL = 0.5  # seconds between two health checks of the workers by Ray Train
_ERROR, _FAILURES = "error-{}.json", "failures.jsonl"


def check_workers(execution: Execution, batch: int, example_block: int) -> int:
    """Returns the number of example blocks of a batch, the maximum number of workers.

    Args:
        execution: the section `execution` of the config.
        batch: number of examples in a batch.
        example_block: number of examples in a block.

    Raises:
        ConfigError: a batch has fewer blocks than workers, or `device` contradicts `gpus_per_actor`.
    """
    blocks = -(-batch // example_block)
    if (workers := execution.actors or 1) > blocks:
        smaller = f"estimator.example_block to at most {batch // workers}, or " if workers <= batch else ""
        raise ConfigError(
            f"execution.actors: {workers} replicas need at least {workers} example blocks, but a batch of {batch} "
            f"examples has {blocks} (estimator.example_block={example_block}); set {smaller}actors to at most {blocks}"
        )
    given = "cuda" if execution.gpus_per_actor else "cpu"
    if execution.device not in ("auto", given):
        raise ConfigError(
            f"execution.device: {execution.device!r} contradicts gpus_per_actor="
            f"{execution.gpus_per_actor:g} of replicas; set it to 'auto', or change gpus_per_actor"
        )
    return blocks


def run_replicas(
    function: Callable[[torch.device], None],
    execution: Execution,
    max_workers: int,
    folder: Path,
    watch: Callable[[], None],
) -> None:
    """Runs a function in every worker of a Ray Train group; restarts the group when a worker fails.

    A restarted function must continue from its own checkpoints. The workers run on the cluster at RAY_ADDRESS if it is
    set, else on a local Ray that ends with the run. On several machines, `folder` must be shared by all of them.

    Args:
        function: `function(device)`, runs in every worker; `torch.distributed` connects the workers.
        execution: the section `execution` of the config.
        max_workers: maximum number of workers that can have work.
        folder: holds the errors of the workers during the run; deleted at the end.
        watch: called several times a second in this process, and once at the end.

    Raises:
        UserError, FloatingPointError: a worker raised it; the group is not restarted.
        ClusterError: the cluster has no room for the workers, or they failed more than `max_failures` times.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a run whose driver was killed
    folder.mkdir(parents=True)
    try:
        with connected(execution.cpus_per_actor * (execution.actors or 1)) as local:
            bundle = bundle_of(execution.cpus_per_actor, execution.gpus_per_actor)
            workers = execution.actors or max(1, min(max_workers, fitting(bundle) if local else room(bundle)))
            # Ray Train waits for its own placement group without a limit.
            remove_placement_group(reserve(workers, bundle, execution.placement_timeout, own=local))
            work = partial(_work, function, folder, software())
            fit = partial(_fit, work, execution, workers, folder, local=local)
            reason = _fitted(fit, execution, folder, watch, local=local)
        _raise_error(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if reason:
        raise ClusterError(
            f"the replicas failed more than execution.max_failures={execution.max_failures} times; last failure: "
            f"{reason}"
        )


def _fitted(
    fit: Callable[[], str | None], execution: Execution, folder: Path, watch: Callable[[], None], *, local: bool
) -> str | None:
    """Runs Ray Train to its end; returns the reason of a failure.

    It runs in a separate process, because its Ctrl-C handler would end this process with code 0.
    """
    environment = {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_HEALTH_CHECK_INTERVAL),
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
    deadline = math.inf
    try:
        while time.monotonic() < deadline and not ray.wait([running], timeout=_WATCH_INTERVAL)[0]:
            watch()
            if deadline == math.inf and _errors(folder):  # the workers are about to end
                deadline = time.monotonic() + _END_TIMEOUT
        watch()
        if not _errors(folder):
            reason: str | None = ray.get(running)
            return reason
        return None
    except ray.exceptions.RayError as error:
        return f"the failure of Ray Train itself ({one_line(error)})"
    finally:
        # A cancelled Ray Train ends its workers. A local Ray ends with all its processes.
        if not local and not ray.wait([running], timeout=0)[0]:
            ray.cancel(running)
            if not ray.wait([running], timeout=_END_TIMEOUT)[0]:
                ray.cancel(running, force=True)


def _call(fit: Callable[[], A]) -> A:
    """Calls `fit`; Ray runs plain functions only."""
    end_with_raylet()
    return fit()


def _fit(work: Callable[[], None], execution: Execution, workers: int, folder: Path, *, local: bool) -> str | None:
    """Runs Ray Train's trainer in this process; returns the reason of a failure."""
    import ray.train
    import ray.train.torch

    train: Any = ray.train  # its type hints describe Train V1

    class Failures(train.UserCallback):  # type: ignore[misc]
        """Records failures; Ray Train's controller calls it on the driver's machine."""

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            with (folder / _FAILURES).open("a") as file:
                file.write(json.dumps(_reason(worker_exceptions)) + "\n")

    bundle = bundle_of(execution.cpus_per_actor, execution.gpus_per_actor)
    trainer = train.torch.TorchTrainer(
        work,
        scaling_config=train.ScalingConfig(
            num_workers=workers, use_gpu=execution.gpus_per_actor > 0, resources_per_worker=bundle
        ),
        # NCCL refuses two processes on one GPU.
        torch_config=(_by_file if local else train.torch.TorchConfig)(
            backend="nccl" if execution.gpus_per_actor >= 1 else "gloo"
        ),
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


def _by_file(backend: str) -> Any:
    """Returns a TorchConfig whose workers connect through a file, because torch's store listens on all interfaces."""
    import ray.train.torch.config

    config: Any = ray.train.torch.config  # private names of Ray
    if not all(hasattr(config, name) for name in ("_TorchBackend", "_setup_torch_process_group")):
        return config.TorchConfig(backend=backend)

    class FileBackend(config._TorchBackend):  # type: ignore[misc]
        """Connects the workers through a file in the folder of the local Ray."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            """Connects the workers, all on this machine."""
            node: Any = ray._private.worker._global_node
            store = Path(node.get_session_dir_path()) / f"store-{uuid.uuid4().hex}"
            size = len(worker_group)
            options = {"backend": backend, "world_size": size, "init_method": f"file://{store}"}
            joining = [
                worker_group.execute_single_async(rank, config._setup_torch_process_group, world_rank=rank, **options)
                for rank in range(size)
            ]
            ray.get(joining)

    class FileConfig(config.TorchConfig):  # type: ignore[misc]
        """Selects `FileBackend`."""

        @property
        def backend_cls(self) -> type:
            """Returns the class that connects the workers."""
            return FileBackend

    return FileConfig(backend=backend)


def _work(function: Callable[[torch.device], None], folder: Path, expected: Software) -> None:
    """Runs in a worker; sends errors that a user must fix to the driver. Ray Train handles all others by a restart.

    Args:
        function: `run_replicas`' function.
        folder: receives the errors.
        expected: the software of the driver.
    """
    from ray.train.torch import get_device

    end_with_raylet()
    try:
        check_same(node_name(), software(), expected)
        function(get_device())
    except OtherReplicaError:
        return
    except (UserError, FloatingPointError) as error:
        content = json.dumps({"kind": type(error).__name__, "message": str(error)})
        write_atomically(folder / _ERROR.format(distributed.get_rank()), content.encode())


def _errors(folder: Path) -> list[Path]:
    return sorted(folder.glob(_ERROR.format("*")))


def _raise_error(folder: Path) -> None:
    """Raises the error of a worker in this process."""
    for path in _errors(folder):
        record = json.loads(path.read_text())
        kind = FloatingPointError if record["kind"] == "FloatingPointError" else getattr(errors, record["kind"])
        raise kind(record["message"])


def failures(folder: Path) -> list[str]:
    """Returns the reason of each failure of the group so far."""
    try:
        return [json.loads(line) for line in (folder / _FAILURES).read_text().splitlines()]
    except FileNotFoundError:
        return []


def _reason(failed: Mapping[int, Exception]) -> str:
    """Returns the original failure among the errors of the workers and of Ray Train (-1).

    One lost worker makes the sum fail in all others, so a LostReplicaError comes last.
    """
    causes = {rank: getattr(error, "_base_exc", error) for rank, error in failed.items()}  # without its traceback
    rank = min(causes, key=lambda rank: (isinstance(causes[rank], LostReplicaError), rank))
    cause = causes[rank]
    died = isinstance(cause, RayActorError) or type(cause).__name__ == "WorkerHealthCheckFailedError"  # Ray Train's own
    reason = "its process died or stopped responding" if died else f"{type(cause).__name__}: {one_line(cause)}"
    return f"worker {rank}: {reason}" if rank >= 0 else f"Ray Train ({reason})"
