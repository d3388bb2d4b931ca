"""A model of the time that a step of `layers` takes on many actors.

The driver runs the shared passes and sends state and tapes; actors compute items; the driver collects and adds. No two
of these overlap, which is pessimistic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from glr_dist.estimators import Estimator, Step, WorkItem
from glr_dist.execution import plan

_SUMS = 3  # number of times that the driver moves each result: it unpacks, adds and uses it


@dataclass(frozen=True)
class Hardware:
    """Assumptions about actors and their connections; the defaults describe CPU cores of one machine.

    Attributes:
        rate: FLOPs per second of one actor.
        block: minimum seconds of a pass: the calls of a few dozen operators.
        step: fixed seconds of a step: putting state and tapes into the object store, waking the actors.
        call: seconds of a call to an actor and its answer.
        result: seconds of the driver per item result; it handles one at a time.
        least_call: minimum seconds of work that `layers` puts into a call.
        memory: bytes per second into and out of the object store of one machine.
        bandwidth: bytes per second of the link of each actor (infinite on one machine).
        latency: seconds of a message on such a link.
    """

    rate: float = 5e10
    block: float = 1e-4
    step: float = 5e-3
    call: float = 8e-4
    result: float = 2e-4
    least_call: float = 5e-3
    memory: float = 4e9
    bandwidth: float = math.inf
    latency: float = 0.0

    def item_seconds(self, step: Step, item: WorkItem) -> float:
        """Returns the predicted seconds of an item, without its frames."""
        work = plan.work_of(step, item)
        return (work.flops + plan.element_work(work)) / self.rate + self.block * work.passes


class Frames(NamedTuple):
    """Orthonormal frames that an item draws from; items of one group share them on an actor."""

    group: tuple[int, str | None]
    seconds: float


@dataclass(frozen=True)
class Load:
    """Work and traffic of one step of GLR.

    Attributes:
        items: seconds of each work item, without its frames.
        frames: frames of each item.
        serial: seconds of the driver: shared passes, parameter gradients from δ, the optimizer.
        back: bytes that all items return.
        out: bytes that each actor receives: the state once, and the tape of each shared pass.
    """

    items: tuple[float, ...]
    frames: tuple[Frames, ...]
    serial: float
    back: int
    out: int

    def inline(self, threads: int = 1) -> float:
        """Returns the seconds of the step in one process, with its items on `threads` threads."""
        packed = plan.pack(self.items, threads)
        made = self._made(range(len(self.items))) / threads
        return self.serial + made + plan.makespan(self.items, packed)

    def of_actor(self, items: Sequence[int]) -> float:
        """Returns the seconds of an actor with these items, including the frames that they need."""
        return sum(self.items[number] for number in items) + self._made(items)

    def _made(self, items: Sequence[int]) -> float:
        needed: dict[tuple[int, str | None], float] = {}
        for group, seconds in (self.frames[number] for number in items):
            needed[group] = max(needed.get(group, 0.0), seconds)
        return sum(needed.values())


@dataclass(frozen=True)
class Prediction:
    """Prediction of one step of one method on a number of GPUs (or actors).

    Attributes:
        gpus: number of GPUs.
        used: number of GPUs that get work.
        seconds: seconds of the step.
        waiting: idle share of the time of all GPUs.
        sent: bytes over all links.
        rounds: number of messages that wait for one another.
    """

    gpus: int
    used: int
    seconds: float
    waiting: float
    sent: float
    rounds: int


def all_items(estimator: Estimator, step: Step) -> list[WorkItem]:
    """Returns the work items of all shared passes of a step."""
    return [item for shared_pass in range(estimator.passes(step)) for item in estimator.items(step, shared_pass)]


def serial_work(estimator: Estimator, step: Step) -> tuple[float, int]:
    """Returns the FLOPs that the driver computes in a step, and the number of passes that it runs.

    They comprise the shared passes, the parameter gradients of the sites whose items return δ, and ten operations of
    the optimizer per parameter.
    """
    own = estimator.driver_work(step)
    shared = own.shared_passes // len(step.example_blocks) * step.size * plan.pass_work(step, noisy=True)
    return 10.0 * parameters(step) + shared + own.flops, own.shared_passes


def load_of(estimator: Estimator, step: Step, tapes: int, seconds: Callable[[WorkItem], float], serial: float) -> Load:
    """Returns the load of a step.

    Args:
        estimator: cuts the step into items.
        step: the step.
        tapes: bytes of the tape of one shared pass (`plan.tape_bytes` of all example blocks).
        seconds: predicts the seconds of an item, without its frames.
        serial: seconds of the driver.
    """
    items = all_items(estimator, step)
    return Load(
        items=tuple(map(seconds, items)),
        frames=tuple(
            Frames((item.shared_pass, item.site), plan.frame_work(step, item) / Hardware.rate) for item in items
        ),
        serial=serial,
        back=sum(plan.partial_bytes(step, item) for item in items),
        out=plan.state_bytes(step) + estimator.passes(step) * tapes,
    )


def layers(work: Load, machine: Hardware, actors: int) -> Prediction:
    """Predicts a step of `layers`: the driver, then the slowest actor, and the transfers between them.

    On one machine the store is written once and read by all. Over a network, state and tapes are forwarded down a tree
    in chunks, and results arrive over the driver's single link.
    """
    calls = Counter(actor for actor, _ in plan.batches(work.items, actors, machine.least_call))
    lanes = plan.lanes(work.items, actors)
    slowest = max(calls[actor] * machine.call + work.of_actor(lane) for actor, lane in enumerate(lanes))
    used = len(calls)
    hops = math.ceil(math.log2(used + 1))
    distribute = 2 * work.out / machine.memory + work.out / machine.bandwidth + hops * machine.latency
    collect = _SUMS * work.back / machine.memory + work.back / machine.bandwidth + machine.latency
    phase = max(slowest, machine.call + machine.result * len(work.items))
    total = work.serial + machine.step + distribute + phase + collect
    return Prediction(
        gpus=actors,
        used=used,
        seconds=total,
        waiting=1 - sum(work.items) / (actors * total),
        sent=used * work.out + work.back,
        rounds=hops + 1,
    )


def layers_pay(work: Load, machine: Hardware, threads: int, actors: int) -> bool:
    """Returns True if `layers` on `actors` actors is predicted to be faster than `inline` on `threads` threads."""
    return layers(work, machine, actors).seconds < work.inline(threads)


def parameters(step: Step) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in step.network.parameters.values())
