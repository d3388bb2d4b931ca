"""Joins or starts a Ray cluster, and reserves resources on it."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager

import ray
import torch
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from glr_dist.errors import ClusterError
from glr_dist.text import one_line


def connect(cpus: float = 0) -> bool:
    """Joins the cluster that RAY_ADDRESS names, or else starts a Ray of this process's own.

    Args:
        cpus: a Ray that is started has at least so many logical CPUs, whatever the number of cores.

    Returns:
        Whether a Ray was started, for `ray.shutdown` to end.

    Raises:
        ClusterError: the cluster at RAY_ADDRESS cannot be joined.
    """
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, object] = {}
    if own := address == "local":
        options = {"num_cpus": max(_cores(), math.ceil(cpus)), "include_dashboard": False}
    connected: Future[None] = Future()

    def init() -> None:
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)  # type: ignore[arg-type]
            connected.set_result(None)
        except BaseException as error:
            connected.set_exception(error)
        threading.Event().wait()  # the system may end what a thread has started when the thread ends

    # In the main thread, Ctrl-C in the middle of it would leave half-started processes behind.
    terminate = signal.getsignal(signal.SIGTERM)  # Ray sets one of its own
    threading.Thread(target=init, name="ray", daemon=True).start()
    try:
        connected.result()
    except (ConnectionError, RuntimeError, RayError) as error:  # nobody there, other versions, no right to
        if own:
            raise
        raise ClusterError(f"RAY_ADDRESS: the cluster at {address} cannot be joined ({one_line(error)})") from None
    finally:
        wait([connected])
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)
    if own:
        shared = f" on {_cores()} cores, which they share" if math.ceil(cpus) > _cores() else ""
        print(f"started a local Ray with {options['num_cpus']} CPUs{shared}", file=sys.stderr)
    return own


@contextmanager
def connected(cpus: float) -> Iterator[bool]:
    """Connects to Ray, and disconnects afterwards if it was not connected before; yields the result of `connect`."""
    before = ray.is_initialized()
    try:
        yield connect(cpus)
    finally:
        if not before:
            ray.shutdown()


def available(cpus: float, gpus: float) -> int:
    """Returns the number of actors that fit now: on the cluster at RAY_ADDRESS if it is set, else on this machine."""
    if "RAY_ADDRESS" in os.environ or ray.is_initialized():
        connect()
        return room(bundle_of(cpus, gpus))
    return fitting(bundle_of(cpus, gpus), {"CPU": _cores(), "GPU": torch.cuda.device_count()})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bundle_of(cpus: float, gpus: float) -> dict[str, float]:
    """Returns the resources of one actor by Ray's names."""
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
        timeout: seconds to wait until the cluster has placed it; Ray itself has no limit.
        own: True if this process started the cluster. Such a cluster never grows, so a request beyond its size fails
            at once.

    Raises:
        ClusterError: the cluster has no place; the message names the request and the cluster's resources.
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
        f"{asked(number, bundle)}: no place for them, the cluster has {resources()}; "
        "lower execution.actors, execution.cpus_per_actor or execution.gpus_per_actor"
        + ("" if too_large else f", or raise execution.placement_timeout ({timeout:g} s)")
    )


def asked(number: int, bundle: Mapping[str, float]) -> str:
    """Describes a request in words."""
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    return f"execution.actors: {number} of {each} each"


def resources() -> str:
    """Describes the cluster's resources in words."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return " and ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in ("CPU", "GPU"))
