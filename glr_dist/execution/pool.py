"""A pool of Ray actors that outlives their deaths, their freezing, and nodes that come and go.

A call is a pure function of what it brings along: a lost one is made again, on any actor, and a restarted actor needs
no care, for it fetches the shared values that it has not.
"""

from __future__ import annotations

import os
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
from glr_dist.execution.cluster import asked, bundle_of, connect, fitting, reserve, resources, room
from glr_dist.text import one_line

_IN_FLIGHT = 2  # calls per actor: one is computed, the next one waits there
_LOSSES = 10  # of one call: then it is not the actors' fault
_STARTS = 3  # of one actor that never answers
_PATIENCE = 120.0  # seconds without any actor


class Shared(NamedTuple):
    """A value in the object store. An actor keeps the last value that it was given of each name.

    The reference travels only with the first call of an actor that needs it: each one costs a millisecond.
    """

    name: str
    version: int
    ref: tuple[Any, ...]  # not bare, or Ray would fetch the value for each call


class StaleError(Exception):
    """An actor has not the version of a shared value that a call names: it was restarted since."""


class Call(NamedTuple):
    """A method of the actors' object, to be called with `Shared` among the arguments.

    `actor` is the number of the actor that should make it; another one does when it has nothing else to do.
    """

    method: str
    arguments: tuple[Any, ...]
    actor: int | None = None


class Shell:
    """The actor: a plain object whose methods are called with shared values in place of their references."""

    def __init__(self, kind: type, arguments: tuple[Any, ...]) -> None:
        self._inner = kind(*arguments)
        self._kept: dict[str, tuple[int, Any]] = {}

    def pid(self) -> int:
        """The process: an actor that answers is alive."""
        return os.getpid()

    def call(self, method: str, arguments: tuple[Any, ...]) -> tuple[Any, float]:
        """What the object's method returns, and the seconds that it took."""
        started = time.perf_counter()
        values = [self._value(given) if isinstance(given, Shared) else given for given in arguments]
        return getattr(self._inner, method)(*values), time.perf_counter() - started

    def _value(self, shared: Shared) -> Any:
        version, value = self._kept.get(shared.name, (None, None))
        if version != shared.version:
            if not shared.ref:
                raise StaleError(shared.name)
            value = ray.get(shared.ref[0])
            self._kept[shared.name] = shared.version, value
        return value


@dataclass(eq=False)
class _Task:
    """A call on its way."""

    call: Call
    losses: int = 0
    wanted: bool = True
    done: bool = False
    result: Any = None


@dataclass(eq=False)
class _Slot:
    """An actor's place in the pool."""

    actor: Any
    ping: Any  # the answer that will show it to be alive; None while it is
    since: float  # when its oldest call, or its ping, began to be waited for
    calls: deque[tuple[Any, _Task]] = field(default_factory=deque)  # in the order in which it computes them
    known: dict[str, int] = field(default_factory=dict)  # versions of shared values that it was sent
    starts: int = 1  # without an answer
    pid: int | None = None
    busy: float = 0.0  # seconds, since `progress` was last asked


class Pool:
    """Actors that each hold one object of a class. Its own Ray is started where there is none.

    Args:
        kind: the class.
        arguments: of its constructor.
        actors: how many; by default as many as the cluster has room for.
        cpus, gpus: what each of them takes.
        placement_timeout: seconds to wait for their place.
        hang_timeout: seconds that a call may take until its actor is restarted; when it is made again, twice as many.

    Attributes:
        restarts: how often an actor was lost.

    Raises:
        ClusterError: the cluster has no place for them.
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
    ) -> None:
        self.restarts = self._told = 0
        self._hang_timeout = hang_timeout
        self._queue: deque[_Task] = deque()
        self._slots: list[_Slot] = []
        self._versions: dict[str, int] = {}
        self._alive_at = self._asked_at = time.monotonic()
        self._own_group: PlacementGroup | None = None
        self._own_ray = connect((actors or 0) * cpus)
        try:
            size, group = self._placed(actors, cpus, gpus, placement_timeout)
            place = PlacementGroupSchedulingStrategy(group)
            options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 0}
            self._actor: Any = ray.remote(Shell).options(scheduling_strategy=place, **options)
            self._made_of = kind, arguments
            self._slots = [self._slot() for _ in range(size)]
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def pids(self) -> list[int]:
        """The processes of the actors that are known to be alive."""
        return [slot.pid for slot in self._slots if slot.pid is not None and slot.ping is None]

    def share(self, name: str, value: Any) -> Shared:
        """Puts a value into the object store, for any number of calls."""
        self._versions[name] = self._versions.get(name, 0) + 1
        return Shared(name, self._versions[name], (ray.put(value),))

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[int, Any]]:
        """Makes calls.

        A call is taken from `calls` when an actor will soon be free for it; `calls` may itself run others meanwhile.

        Returns:
            (the call's place, its result), as they come.

        Raises:
            Exception: what a call itself raises.
            ClusterError: no actor is left, or one call is lost again and again.
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
                task.wanted = False

    def progress(self) -> dict[str, Any]:
        """Since this was last asked: the share of the time that each actor was busy, and the restarts."""
        now = time.monotonic()
        elapsed, self._asked_at = now - self._asked_at, now
        shares = [round(slot.busy / elapsed, 4) for slot in self._slots]
        for slot in self._slots:
            slot.busy = 0.0
        restarts, self._told = self.restarts - self._told, self.restarts
        return {"actor_busy_share": shares, "actor_restarts": restarts}

    def close(self) -> None:
        """Ends the actors and gives their place back; ends Ray if it was started here."""
        if not ray.is_initialized():
            return
        for slot in self._slots:
            self._end(slot)
        self._slots = []
        if self._own_group is not None:
            remove_placement_group(self._own_group)
            self._own_group = None
        if self._own_ray:
            ray.shutdown()
            self._own_ray = False

    # ------------------------------------------------------------ calls

    def _has_room(self) -> bool:
        """Whether the actors that are alive will soon be without a call; each is offered one more than it takes."""
        alive = [slot for slot in self._slots if slot.ping is None]
        return len(self._queue) + sum(len(slot.calls) for slot in alive) < (_IN_FLIGHT + 1) * max(1, len(alive))

    def _dispatch(self) -> None:
        """Gives the queue's calls to the actors with the fewest."""
        alive = [(number, slot) for number, slot in enumerate(self._slots) if slot.ping is None]
        while self._queue and alive:
            number, slot = min(alive, key=lambda numbered: len(numbered[1].calls))
            # A second call waits at an actor only while there is one for everybody: the last ones go to who is free.
            if len(slot.calls) == _IN_FLIGHT or (slot.calls and len(self._queue) <= len(alive)):
                return
            task = next((task for task in self._queue if task.call.actor == number), self._queue[0])
            self._queue.remove(task)
            if task.wanted:
                if not slot.calls:
                    slot.since = time.monotonic()
                arguments = tuple(self._for(slot, a) if isinstance(a, Shared) else a for a in task.call.arguments)
                slot.calls.append((slot.actor.call.remote(task.call.method, arguments), task))

    @staticmethod
    def _for(slot: _Slot, shared: Shared) -> Shared:
        """A shared value as an actor needs it: without its reference where the last call brought it."""
        if slot.known.get(shared.name) == shared.version:
            return shared._replace(ref=())
        slot.known[shared.name] = shared.version
        return shared

    def _wait(self) -> None:
        """Waits for an answer, takes it, and looks after actors that give none."""
        waited = {slot.ping: slot for slot in self._slots if slot.ping is not None}
        waited.update({ref: slot for slot in self._slots for ref, _ in slot.calls})
        ready, _ = ray.wait(list(waited), timeout=min(1.0, self._hang_timeout / 4))
        for ref in ready:
            (self._take_ping if ref is waited[ref].ping else self._take_result)(waited[ref], ref)
        now = time.monotonic()
        if any(slot.ping is None for slot in self._slots):
            self._alive_at = now
        elif now - self._alive_at > _PATIENCE:
            raise ClusterError(f"no actor has answered for {_PATIENCE:.0f} s; the cluster has {resources()}")
        for slot in self._slots:
            if slot.calls and self._hangs(slot, now):
                with suppress(RayError):
                    ray.kill(slot.actor, no_restart=False)  # frozen: Ray itself would never know
                self._lose(slot, f"no answer for {now - slot.since:.0f} s")
            elif slot.ping is not None and now - slot.since > max(self._hang_timeout, _PATIENCE):
                self._replace(slot)

    def _hangs(self, slot: _Slot, now: float) -> bool:
        """Whether an actor's oldest call takes too long; its answer may lie here, when this process was busy itself."""
        ref, task = slot.calls[0]
        late = now - slot.since > self._hang_timeout * 2**task.losses
        return late and not ray.wait([ref], timeout=0, fetch_local=False)[0]

    def _take_result(self, slot: _Slot, ref: Any) -> None:
        place = next(i for i, (waiting, _) in enumerate(slot.calls) if waiting is ref)
        task = slot.calls[place][1]
        mistake: BaseException | None = None
        try:
            task.result, seconds = ray.get(ref)
        except RayTaskError as error:
            mistake, seconds = error.cause, 0.0
        except RayError as error:
            mistake, seconds = error, 0.0
        # What the call raised, and Ray could not carry over, comes as an error of Ray's own too.
        untold = type(mistake) is RayError or isinstance(mistake, UnserializableException)
        if isinstance(mistake, RayError) and not untold:  # the actor, the result, or a shared value is lost
            self._lose(slot, str(mistake))
            return
        del slot.calls[place]
        slot.since = time.monotonic()
        if isinstance(mistake, StaleError):
            slot.known.clear()
            self._queue.appendleft(task)
            return
        slot.busy += seconds
        task.done = True
        if mistake is not None and task.wanted:
            raise mistake

    # ------------------------------------------------------------ actors

    def _slot(self) -> _Slot:
        actor = self._actor.remote(*self._made_of)
        return _Slot(actor, actor.pid.remote(), time.monotonic())

    def _lose(self, slot: _Slot, reason: str) -> None:
        """Takes an actor's calls back and waits for the actor to return."""
        self.restarts += 1
        tasks = [task for _, task in slot.calls]
        slot.calls.clear()
        slot.known.clear()
        slot.ping, slot.since = slot.actor.pid.remote(), time.monotonic()
        self._queue.extendleft(reversed(tasks))
        for head in tasks[:1]:
            head.losses += 1
            if head.wanted and head.losses >= _LOSSES:
                raise ClusterError(f"one call lost {_LOSSES} actors; the last time: {one_line(reason)}")

    def _take_ping(self, slot: _Slot, ref: Any) -> None:
        try:
            slot.pid = ray.get(ref)
        except ActorUnavailableError:  # on its way back
            time.sleep(0.05)
            slot.ping = slot.actor.pid.remote()
        except RayError as error:
            if slot.starts >= _STARTS:
                raise ClusterError(
                    f"an actor died {_STARTS} times as it started; the last time: {one_line(error)}"
                ) from None
            self._replace(slot)
        else:
            slot.ping, slot.starts = None, 0

    def _replace(self, slot: _Slot) -> None:
        """Begins anew with an actor that does not come back."""
        self._end(slot)
        fresh = self._slot()
        slot.actor, slot.ping, slot.since, slot.starts = fresh.actor, fresh.ping, fresh.since, slot.starts + 1

    @staticmethod
    def _end(slot: _Slot) -> None:
        with suppress(RayError):
            ray.kill(slot.actor)

    def _placed(self, actors: int | None, cpus: float, gpus: float, timeout: float) -> tuple[int, PlacementGroup]:
        """How many actors, and the placement group that holds them: a Tune trial's own, or a new one."""
        bundle = bundle_of(cpus, gpus)
        group = ray.util.get_current_placement_group()
        if group is None:
            actors = actors or max(1, fitting(bundle) if self._own_ray else room(bundle))
            self._own_group = reserve(actors, bundle, timeout, own=self._own_ray)
            return actors, self._own_group
        taken = ray.get_runtime_context().get_assigned_resources()  # by the trial itself, from its first bundle
        first, *others = group.bundle_specs
        free = [{name: amount - taken.get(name, 0) for name, amount in first.items()}, *others]
        places = sum(fitting(bundle, there) for there in free)
        if places < (actors or 1):
            has = f"the trial's placement group has {free} beside the trial itself"
            raise ClusterError(f"{asked(actors or 1, bundle)}: no place for them, {has}")
        return actors or places, group
