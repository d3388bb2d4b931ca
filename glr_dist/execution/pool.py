"""A pool of Ray actors that survives dead actors, frozen actors, and nodes that leave and join.

A call is a pure function of its arguments. The pool therefore repeats a lost call on any actor, and a restarted actor
fetches the shared values again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError, UnserializableException
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from glr_dist.errors import ClusterError
from glr_dist.execution import watch
from glr_dist.execution.cluster import (
    bundle_of,
    connect,
    disconnect,
    fitting,
    memory_kills,
    no_room,
    reserve,
    resources,
    room,
)
from glr_dist.execution.shell import Shared, Shell, StaleError
from glr_dist.execution.software import check_same, software
from glr_dist.imported import searched
from glr_dist.text import one_line

_MAX_IN_FLIGHT = 2  # calls per actor: it computes one while the next one waits there
_MAX_LOSSES = 10  # actors that one call may lose; after that, the call itself is considered faulty
_MAX_STARTS = 3  # failed starts of an actor before the pool gives up
_MAX_SILENCE = 120.0  # seconds without a healthy actor before the pool gives up
_MAX_MEMORY_KILLS = 3  # processes killed for lack of memory, while no actor is healthy, before the pool gives up


class Call(NamedTuple):
    """A method of the actors' object and its arguments, which may be `Shared` values.

    `actor` is the index of the preferred actor; another actor takes the call if it would be idle otherwise.
    """

    method: str
    arguments: tuple[Any, ...]
    actor: int | None = None


@dataclass(eq=False)
class _Task:
    """A call and its state."""

    call: Call
    losses: int = 0
    needed: bool = True  # its caller still waits for the result
    done: bool = False
    result: Any = None


@dataclass(eq=False)
class _Slot:
    """An actor's place in the pool."""

    actor: Any
    ping: Any  # the pending answer of an actor that starts; None for a healthy actor
    since: float  # start of the wait for the oldest call, or for the ping
    in_flight: deque[tuple[Any, _Task]] = field(default_factory=deque)  # in the order of computation
    versions: dict[str, int] = field(default_factory=dict)  # of the shared values that were sent to it
    starts: int = 1  # consecutive starts without an answer
    pid: int | None = None
    busy: float = 0.0  # seconds of work since the previous `progress`

    @property
    def healthy(self) -> bool:
        """True if the actor has answered since its last start."""
        return self.ping is None


class Pool:
    """Ray actors that each hold one object of a class. The pool starts a local Ray if this process has no cluster.

    Args:
        kind: the class.
        arguments: the arguments of its constructor.
        actors: number of actors; by default as many as the cluster has room for.
        cpus, gpus: logical CPUs and GPUs that each actor reserves.
        placement_timeout: seconds to wait until the cluster has placed the actors.
        hang_timeout: seconds that a call may take before its actor is restarted; doubled each time the call is
            repeated.
        role: role of the actors; Ray's dashboard and `ps` show them as `GLR` + role + `Actor`.

    Attributes:
        restarts: number of times that an actor was lost.

    Raises:
        ClusterError: the cluster cannot be joined, or has no room for the actors. `run` also raises it for a node
            with another version of this package, Python or a library.
    """

    def __init__(
        self,
        kind: type,
        arguments: tuple[Any, ...] = (),
        actors: int | None = None,
        *,
        cpus: float = 1,
        gpus: float = 0,
        placement_timeout: float = 15,
        hang_timeout: float = 60,
        role: str = "Pool",
    ) -> None:
        self.restarts = self._reported_restarts = 0
        self._hang_timeout = hang_timeout
        self._queue: deque[_Task] = deque()
        self._slots: list[_Slot] = []
        self._versions: dict[str, int] = {}
        self._healthy_at = self._reported_at = time.monotonic()
        self._own_group: PlacementGroup | None = None
        self._own_ray = connect((actors or 0) * cpus)
        try:
            self._earlier_memory_kills = memory_kills()
            size, group = self._placed(actors, cpus, gpus, placement_timeout)
            place = PlacementGroupSchedulingStrategy(group)
            options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 0}
            named = type(f"GLR{role}Actor", (Shell,), {"__module__": __name__})
            self._actor: Any = ray.remote(named).options(scheduling_strategy=place, **options)
            self._made_of = kind, arguments, tuple(searched)
            self._slots = [self._slot() for _ in range(size)]
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def pids(self) -> list[int]:
        """Process ids of the healthy actors."""
        return [slot.pid for slot in self._slots if slot.pid is not None and slot.healthy]

    def share(self, name: str, value: Any) -> Shared:
        """Puts a value into the object store, for use in any number of calls."""
        self._versions[name] = self._versions.get(name, 0) + 1
        return Shared(name, self._versions[name], (ray.put(value),))

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[int, Any]]:
        """Makes calls and yields their results in the order of completion.

        The pool takes a call from `calls` when an actor will soon be free for it. `calls` may itself use `run`.

        Yields:
            (index of the call, its result).

        Raises:
            Exception: any exception that a call raises.
            ClusterError: no actor answers, a call has lost too many actors, or an actor fails to start.
        """
        source, mine = enumerate(calls), dict[_Task, int]()
        more = True
        try:
            while True:
                while more and self._has_room():
                    try:
                        index, call = next(source)
                    except StopIteration:
                        more = False
                    else:
                        task = _Task(call)
                        mine[task] = index
                        self._queue.append(task)
                self._dispatch()
                done = [task for task in mine if task.done]
                for task in done:
                    yield mine.pop(task), task.result
                if not more and not mine:
                    return
                if not done:
                    self._wait()
        finally:
            for task in mine:
                task.needed = False

    def progress(self) -> dict[str, Any]:
        """Returns each actor's share of busy time, and the restarts, since the previous call."""
        now = time.monotonic()
        elapsed, self._reported_at = now - self._reported_at, now
        shares = [round(slot.busy / elapsed, 4) for slot in self._slots]
        for slot in self._slots:
            slot.busy = 0.0
        restarts, self._reported_restarts = self.restarts - self._reported_restarts, self.restarts
        return {"actor_busy_share": shares, "actor_restarts": restarts}

    def close(self) -> None:
        """Ends the actors and releases their resources; ends Ray if the pool started it."""
        if not ray.is_initialized():
            return
        if not watch.unresponsive():  # the actors of a dead Ray end with it
            for slot in self._slots:
                self._end(slot)
            if self._own_group is not None:
                remove_placement_group(self._own_group)
        self._slots, self._own_group = [], None
        if self._own_ray or watch.unresponsive():
            disconnect()
            self._own_ray = False

    # ------------------------------------------------------------ calls

    def _has_room(self) -> bool:
        """True if the queue should take another call: it holds about one per healthy actor beyond those in flight."""
        healthy = [slot for slot in self._slots if slot.healthy]
        pending = len(self._queue) + sum(len(slot.in_flight) for slot in healthy)
        return pending < (_MAX_IN_FLIGHT + 1) * max(1, len(healthy))

    def _dispatch(self) -> None:
        """Sends queued calls to the healthy actors with the fewest calls in flight."""
        healthy = [(number, slot) for number, slot in enumerate(self._slots) if slot.healthy]
        while self._queue and healthy:
            number, slot = min(healthy, key=lambda numbered: len(numbered[1].in_flight))
            # An actor gets a second call only while the queue has more calls than actors; idle actors take the rest.
            if len(slot.in_flight) == _MAX_IN_FLIGHT or (slot.in_flight and len(self._queue) <= len(healthy)):
                return
            task = next((task for task in self._queue if task.call.actor == number), self._queue[0])
            self._queue.remove(task)
            if task.needed:
                if not slot.in_flight:
                    slot.since = time.monotonic()
                arguments = tuple(self._for(slot, a) if isinstance(a, Shared) else a for a in task.call.arguments)
                slot.in_flight.append((slot.actor.call.remote(task.call.method, arguments), task))

    @staticmethod
    def _for(slot: _Slot, shared: Shared) -> Shared:
        """Returns the shared value without its reference if the actor has been sent this version before."""
        if slot.versions.get(shared.name) == shared.version:
            return shared._replace(ref=())
        slot.versions[shared.name] = shared.version
        return shared

    def _wait(self) -> None:
        """Waits for answers, handles them, and restarts actors that do not answer."""
        watch.check()
        waited = {slot.ping: slot for slot in self._slots if slot.ping is not None}
        waited.update({ref: slot for slot in self._slots for ref, _ in slot.in_flight})
        ready, _ = ray.wait(list(waited), timeout=min(1.0, self._hang_timeout / 4))
        for ref in ready:
            (self._take_ping if ref is waited[ref].ping else self._take_result)(waited[ref], ref)
        now = time.monotonic()
        if any(slot.healthy for slot in self._slots):
            self._healthy_at = now
        elif now - self._healthy_at > _MAX_SILENCE or self._memory_kills() >= _MAX_MEMORY_KILLS:
            silence = f"no actor has answered for {now - self._healthy_at:.0f} s; the cluster has {resources()}"
            raise ClusterError(f"{silence}{self._remedy()}")
        for slot in self._slots:
            if slot.in_flight and self._hangs(slot, now):
                with suppress(RayError):
                    ray.kill(slot.actor, no_restart=False)  # Ray itself does not notice a frozen process
                self._lose(slot, f"no answer for {now - slot.since:.0f} s")
            elif not slot.healthy and now - slot.since > max(self._hang_timeout, _MAX_SILENCE):
                self._replace(slot)

    def _hangs(self, slot: _Slot, now: float) -> bool:
        """True if the oldest call is late and has no answer yet; one may have arrived while this process was busy."""
        ref, task = slot.in_flight[0]
        late = now - slot.since > self._hang_timeout * 2**task.losses
        return late and not ray.wait([ref], timeout=0, fetch_local=False)[0]

    def _take_result(self, slot: _Slot, ref: Any) -> None:
        position = next(i for i, (waiting, _) in enumerate(slot.in_flight) if waiting is ref)
        task = slot.in_flight[position][1]
        raised: BaseException | None = None
        try:
            task.result, seconds = ray.get(ref)
        except RayTaskError as error:
            raised, seconds = error.cause, 0.0
        except RayError as error:
            raised, seconds = error, 0.0
        # An exception of the call that Ray cannot transfer also arrives as one of Ray's own.
        untransferable = type(raised) is RayError or isinstance(raised, UnserializableException)
        if isinstance(raised, RayError) and not untransferable:  # the actor, the result, or a shared value is lost
            self._lose(slot, str(raised))
            return
        del slot.in_flight[position]
        slot.since = time.monotonic()
        if isinstance(raised, StaleError):
            slot.versions.clear()
            self._queue.appendleft(task)
            return
        slot.busy += seconds
        task.done = True
        if raised is not None and task.needed:
            raise raised

    # ------------------------------------------------------------ actors

    def _slot(self) -> _Slot:
        actor = self._actor.remote(*self._made_of)
        return _Slot(actor, actor.hello.remote(), time.monotonic())

    def _lose(self, slot: _Slot, reason: str) -> None:
        """Returns an actor's calls to the queue and pings its replacement."""
        self.restarts += 1
        tasks = [task for _, task in slot.in_flight]
        slot.in_flight.clear()
        slot.versions.clear()
        slot.ping, slot.since = slot.actor.hello.remote(), time.monotonic()
        self._queue.extendleft(reversed(tasks))
        for head in tasks[:1]:
            head.losses += 1
            if head.needed and head.losses >= _MAX_LOSSES:
                raise ClusterError(
                    f"one call lost {_MAX_LOSSES} actors; last failure: {one_line(reason)}{self._remedy()}"
                )

    def _take_ping(self, slot: _Slot, ref: Any) -> None:
        try:
            slot.pid, where, its_software = ray.get(ref)
        except ActorUnavailableError:  # still restarting
            time.sleep(0.05)
            slot.ping = slot.actor.hello.remote()
        except RayError as error:
            if slot.starts >= _MAX_STARTS:
                raise ClusterError(
                    f"an actor died {_MAX_STARTS} times while starting; last error: {one_line(error)}{self._remedy()}"
                ) from None
            self._replace(slot)
        else:
            check_same(where, its_software, software())
            slot.ping, slot.starts = None, 0

    def _replace(self, slot: _Slot) -> None:
        """Starts a new actor in place of one that Ray cannot restart."""
        self._end(slot)
        fresh = self._slot()
        slot.actor, slot.ping, slot.since, slot.starts = fresh.actor, fresh.ping, fresh.since, slot.starts + 1

    def _memory_kills(self) -> int:
        """Number of processes that Ray has killed for lack of memory since the pool was created."""
        return memory_kills() - self._earlier_memory_kills

    def _remedy(self) -> str:
        """Returns advice if Ray has killed actors for lack of memory, else an empty string."""
        if not (kills := self._memory_kills()):
            return ""
        return (
            f"; Ray killed {kills} processes because a node ran out of memory: lower execution.actors, "
            "estimator.copies or training.batch_size"
        )

    @staticmethod
    def _end(slot: _Slot) -> None:
        with suppress(RayError):
            ray.kill(slot.actor)

    def _placed(self, actors: int | None, cpus: float, gpus: float, timeout: float) -> tuple[int, PlacementGroup]:
        """Returns the number of actors and their placement group; in a Tune trial, the group is that of the trial."""
        bundle = bundle_of(cpus, gpus)
        group = ray.util.get_current_placement_group()
        if group is None:
            actors = actors or max(1, fitting(bundle) if self._own_ray else room(bundle))
            self._own_group = reserve(actors, bundle, timeout, own=self._own_ray)
            return actors, self._own_group
        taken = ray.get_runtime_context().get_assigned_resources()  # the trial itself runs in the first bundle
        first, *others = group.bundle_specs
        free = [{name: amount - taken.get(name, 0) for name, amount in first.items()}, *others]
        places = sum(fitting(bundle, available) for available in free)
        if places < (actors or 1):
            has = f"the trial's placement group has {free} besides the trial itself"
            raise ClusterError(f"{no_room(actors or 1, bundle)}; {has}")
        return actors or places, group
