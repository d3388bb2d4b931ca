"""Joins or starts a Ray cluster, and reserves resources on it."""

from __future__ import annotations

import atexit
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import ray
from ray.core.generated import common_pb2, gcs_pb2
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from glr_dist.errors import ClusterError
from glr_dist.execution import joined, local_ray, watch
from glr_dist.execution.address import probe, ray_address
from glr_dist.text import one_line

_JOIN_TIMEOUT = 30.0  # seconds that a cluster has to answer
_START_TIMEOUT = 120.0  # seconds that a local Ray has to start; a busy machine needs half a minute
_SIGNAL_INTERVAL = 0.2  # seconds between two checks for pending signals
_START_GRACE = 10.0  # seconds that an interrupted `ray.init` has to complete
_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store.00"  # the longest path in TMPDIR
_MAX_SOCKET_PATH = 107 if sys.platform.startswith("linux") else 103  # bytes


def connect(cpus: float = 0) -> bool:
    """Joins the cluster at RAY_ADDRESS, or starts a local Ray if RAY_ADDRESS is not set.

    Args:
        cpus: minimum number of logical CPUs of a local Ray, even if the machine has fewer cores.

    Returns:
        True if it started a local Ray, which `disconnect` ends.

    Raises:
        ClusterError: the cluster at RAY_ADDRESS cannot be joined, or a local Ray cannot start.
    """
    watch.check()
    if ray.is_initialized():
        return False
    address = ray_address() or "local"
    if address != "local":
        probe(address)
        _init(address, f"RAY_ADDRESS: the cluster at {address} cannot be joined")
        _watch_joined()
        return False
    number = max(_cores(), math.ceil(cpus))
    folder = _short_folder()
    options: dict[str, object] = {"num_cpus": number, "include_dashboard": False}
    try:
        with local_ray.local_settings():
            _init("local", "a local Ray cannot start", **options, **({"_temp_dir": folder} if folder else {}))
    except BaseException:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if folder:
        _after_ray.callback(shutil.rmtree, folder, ignore_errors=True)
    processes = local_ray.processes()
    _held_sockets.extend(local_ray.held_sockets(processes["raylet"].pid))
    deaths = [watch.exited(name, process.poll) for name, process in processes.items()]
    watch.begin(deaths, ray.is_initialized, local=True)
    shared = f" that share {_cores()} cores" if number > _cores() else ""
    where = ray.util.get_node_ip_address()
    print(f"started a local Ray with {number} CPUs{shared}; it listens on {where}", file=sys.stderr)
    return True


def _watch_joined() -> None:
    """Watches the GCS of the cluster and the raylet on this machine."""
    deaths = [joined.Gcs(ray.get_runtime_context().gcs_address).death]
    raylet = joined.process_at(getattr(ray._private.worker._global_node, "raylet_socket_name", ""))
    if raylet is not None:
        _held_sockets.extend(local_ray.held_sockets(raylet))
        deaths.append(joined.raylet_death(raylet))
    watch.begin(deaths, ray.is_initialized, local=False)


def disconnect() -> None:
    """Disconnects from Ray; ends a local Ray of this process, and deletes its folders."""
    folder = local_ray.session_folder() if local_ray.processes() else None
    watch.expect_end()
    if killed := watch.unresponsive():
        local_ray.kill_processes()
        atexit.unregister(ray.shutdown)  # it would wait for the dead processes
    else:
        ray.shutdown()
        while _held_sockets:
            os.close(_held_sockets.pop())
    if folder is not None and watch.lost() is None:
        local_ray.remove_session(folder)
    watch.end(killed=killed)
    _after_ray.close()


_after_ray = ExitStack()  # what remains to be done once this process has disconnected
_held_sockets: list[int] = []  # descriptors; they stay open if Ray was killed


def _init(address: str, failure: str, **options: object) -> None:
    """Calls `ray.init` with a time limit; Ctrl-C and SIGTERM interrupt the wait.

    The call runs in another thread: Ctrl-C in the middle of `ray.init` would leave half-started processes behind, and
    parts of `ray.init` do not react to signals while they wait.

    Raises:
        ClusterError: `ray.init` fails or exceeds the limit. The message begins with `failure`.
    """
    done, disconnected = Future[None](), threading.Event()
    _after_ray.callback(disconnected.set)

    def init() -> None:
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)  # type: ignore[arg-type]
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)
            return
        disconnected.wait()  # processes that a thread has started may end with the thread

    in_main_thread = threading.current_thread() is threading.main_thread()
    terminate = signal.getsignal(signal.SIGTERM)

    def restore() -> None:
        # Ray's core installs a C handler that aborts, without Python's knowledge.
        if in_main_thread:
            signal.signal(signal.SIGTERM, terminate)

    thread = threading.Thread(target=init, name="ray", daemon=True)
    thread.start()
    timeout = _START_TIMEOUT if address == "local" else _JOIN_TIMEOUT
    limit = time.monotonic() + timeout
    try:
        while not wait([done], timeout=_SIGNAL_INTERVAL).done:
            restore()
            if time.monotonic() > limit:
                raise ClusterError(f"{failure}: no answer within {timeout:g} s")
        done.result()
    except (ConnectionError, OSError, RuntimeError, ValueError, AssertionError, RayError) as error:
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(f"{failure} ({one_line(error)})") from None
    except BaseException:
        wait([done], timeout=_START_GRACE)  # a complete Ray is shut down at exit
        raise
    finally:
        restore()


def _short_folder() -> str | None:
    """Makes a folder for the sockets of a local Ray if their paths in TMPDIR would exceed the system's limit."""
    root = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(f"{root}{_SOCKET}")) <= _MAX_SOCKET_PATH:
        return None
    try:
        return tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    except OSError as error:
        raise ClusterError(
            f"TMPDIR: {root} is too long for Ray's sockets, and /tmp is not writable ({error})"
        ) from None


@contextmanager
def connected(cpus: float) -> Iterator[bool]:
    """Connects to Ray; yields the result of `connect`; disconnects at the end unless Ray was connected before."""
    before = ray.is_initialized()
    try:
        yield connect(cpus)
    finally:
        if not before:
            disconnect()


def available(cpus: float, gpus: float) -> int:
    """Returns the number of actors that fit now: on the cluster at RAY_ADDRESS if it is set, else on this machine."""
    if ray_address() or ray.is_initialized():
        connect()
        return room(bundle_of(cpus, gpus))
    import torch  # here: a process that only holds actors starts without it

    return fitting(bundle_of(cpus, gpus), {"CPU": _cores(), "GPU": torch.cuda.device_count()})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bundle_of(cpus: float, gpus: float) -> dict[str, float]:
    """Returns the resources of one actor under Ray's names."""
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}


def fitting(bundle: Mapping[str, float], available: Mapping[str, float] | None = None) -> int:
    """Returns the number of bundles that fit into `available` (default: the whole cluster)."""
    found: Mapping[str, float] = ray.cluster_resources() if available is None else available
    return math.floor(min(found.get(name, 0) / amount + 1e-9 for name, amount in bundle.items()))


def room(bundle: Mapping[str, float]) -> int:
    """Returns the number of bundles for which the cluster has free resources; a bundle must fit on one node."""
    whole = sum(fitting(bundle, node["Resources"]) for node in ray.nodes() if node["Alive"])
    return min(whole, fitting(bundle, ray.available_resources()))


def reserve(number: int, bundle: Mapping[str, float], timeout: float, *, own: bool) -> PlacementGroup:
    """Reserves a placement group of `number` bundles.

    Args:
        number: number of bundles.
        bundle: resources of each bundle.
        timeout: seconds to wait until the cluster has placed the group; Ray itself has no limit.
        own: True if this process started the cluster. Such a cluster never grows, so a request beyond its size fails
            at once.

    Raises:
        ClusterError: the cluster has no room; the message names the request and the cluster's resources.
    """
    too_large = own and fitting(bundle) < number
    if not too_large:
        group: PlacementGroup = placement_group([dict(bundle)] * number)
        placed = False
        try:
            placed = group.wait(timeout)
        finally:
            if not placed:
                remove_placement_group(group)
        if placed:
            return group
    raise ClusterError(
        f"{no_room(number, bundle)}; the cluster has {resources()}; "
        "lower execution.actors, execution.cpus_per_actor or execution.gpus_per_actor"
        + ("" if too_large else f", or raise execution.placement_timeout ({timeout:g} s)")
    )


def no_room(number: int, bundle: Mapping[str, float]) -> str:
    """Describes a request that does not fit, as the start of an error message."""
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    return f"execution.actors: no room for {number} x ({each})"


def resources() -> str:
    """Describes the cluster's resources in words."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return " and ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in ("CPU", "GPU"))


def memory_kills() -> int:
    """Returns the number of processes that Ray killed because a node ran out of memory; 0 if Ray does not report it."""
    common, messages = cast(Any, common_pb2), cast(Any, gcs_pb2)
    state: Any = ray._private.state.state
    with suppress(Exception):  # private names of Ray, and a cluster that does not answer
        workers = map(messages.WorkerTableData.FromString, state._connect_and_get_accessor().get_worker_table())
        return sum(worker.exit_type == common.WorkerExitType.Value("NODE_OUT_OF_MEMORY") for worker in workers)
    return 0
