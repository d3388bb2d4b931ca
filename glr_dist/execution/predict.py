"""How long a step takes on many actors or GPUs, by a model: a prediction, to be compared with measurements.

`layers` (GLR): the driver runs the shared passes, sends state and tapes, actors compute items, the driver collects
and adds; nothing overlaps, which is pessimistic. Backpropagation, split by data or by stages, for comparison:

    data      3 forward passes of ⌈N/P⌉ examples, beside the last two a ring all-reduce: 2(P-1)/P · bytes, 2(P-1)
              latencies
    pipeline  S ≤ P stages of equal work, m micro-batches: (m+S-1)/m times a stage's work, bubble (S-1)/(m+S-1)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from glr_dist.estimators import Estimator, Step, WorkItem
from glr_dist.execution import plan

_SUMS = 3  # times that the driver moves what comes back: unpacks it, adds it, uses it


@dataclass(frozen=True)
class Machine:
    """What is assumed of actors and of what connects them. The defaults: CPU cores of one machine.

    Attributes:
        rate: FLOPs per second of one actor.
        block: seconds that a pass takes however small it is: the calls of a few dozen operators.
        step: seconds that a step takes beside all else: state and tapes put into the object store, actors woken.
        call: seconds of a call to an actor and its answer.
        result: seconds of the driver for the result of an item; it takes one at a time.
        least_call: seconds of work that `layers` fills a call up to.
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
        """The model's seconds of an item, without its frames."""
        work = plan.work_of(step, item)
        return (work.flops + plan.element_work(work)) / self.rate + self.block * work.passes


class Frames(NamedTuple):
    """The orthonormal frames that an item draws from: items of one group share them on an actor."""

    group: tuple[int, str | None]
    seconds: float


@dataclass(frozen=True)
class Load:
    """What there is to do and to send in one step of GLR.

    Attributes:
        items: seconds of each work item, without its frames.
        frames: of each item.
        serial: seconds of the driver alone: shared passes, parameter gradients from δ, the optimizer.
        back: bytes that the items give back, in all.
        out: bytes that each actor needs: the state once, and the tape of each shared pass.
    """

    items: tuple[float, ...]
    frames: tuple[Frames, ...]
    serial: float
    back: int
    out: int

    def inline(self, threads: int = 1) -> float:
        """Seconds of the step in one process, its items side by side on threads."""
        packed = plan.pack(self.items, threads)
        made = self._made(range(len(self.items))) / threads
        return self.serial + made + plan.makespan(self.items, packed)

    def of_actor(self, items: Sequence[int]) -> float:
        """Seconds of an actor with these items, the frames that it needs included."""
        return sum(self.items[number] for number in items) + self._made(items)

    def _made(self, items: Sequence[int]) -> float:
        needed: dict[tuple[int, str | None], float] = {}
        for group, seconds in (self.frames[number] for number in items):
            needed[group] = max(needed.get(group, 0.0), seconds)
        return sum(needed.values())


@dataclass(frozen=True)
class Prediction:
    """One step of one method on a number of GPUs (or actors).

    Attributes:
        gpus: how many there are.
        used: how many get work.
        seconds: of the step.
        waiting: share of the GPUs' time, all of them counted, in which they do not compute.
        sent: bytes over all links together.
        rounds: messages that must wait for each other.
    """

    gpus: int
    used: int
    seconds: float
    waiting: float
    sent: float
    rounds: int


def all_items(estimator: Estimator, step: Step) -> list[WorkItem]:
    """The work items of all shared passes of a step."""
    return [item for shared_pass in range(estimator.passes(step)) for item in estimator.items(step, shared_pass)]


def serial_work(estimator: Estimator, step: Step) -> tuple[float, int]:
    """What the driver computes alone in a step: FLOPs, and the number of passes that it runs.

    The shared passes, the parameter gradients of the sites whose items return δ, and ten operations a parameter of
    the optimizer.
    """
    own = estimator.driver_work(step)
    shared = own.shared_passes // len(step.example_blocks) * len(step.y) * plan.pass_work(step, noisy=True)
    return 10.0 * parameters(step) + shared + own.flops, own.shared_passes


def load_of(estimator: Estimator, step: Step, tapes: int, seconds: Callable[[WorkItem], float], serial: float) -> Load:
    """The load of a step.

    Args:
        estimator: cuts it into items.
        step: the step.
        tapes: bytes of the tape of one shared pass (`plan.tape_bytes` of all example blocks).
        seconds: predicts an item, without its frames.
        serial: seconds of the driver alone.
    """
    items = all_items(estimator, step)
    return Load(
        items=tuple(map(seconds, items)),
        frames=tuple(
            Frames((item.shared_pass, item.site), plan.frame_work(step, item) / Machine.rate) for item in items
        ),
        serial=serial,
        back=sum(plan.partial_bytes(step, item) for item in items),
        out=plan.state_bytes(step) + estimator.passes(step) * tapes,
    )


def layers(work: Load, machine: Machine, actors: int) -> Prediction:
    """A step of the executor `layers`: the driver, then the slowest actor, and what travels between them.

    On one machine the store is written once and read by all; over a network state and tapes go down a tree, piece by
    piece, and results come in over the driver's one link.
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


def choose(work: Load, machine: Machine, threads: int, actors: int) -> bool:
    """Whether `layers` on so many actors is predicted to be faster than `inline` on so many threads."""
    return layers(work, machine, actors).seconds < work.inline(threads)


# ---------------------------------------------------------------- backpropagation, to compare with


def parameters(step: Step) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in step.network.parameters.values())


def data_parallel(step: Step, machine: Machine, gpus: int) -> Prediction:
    """A step of backpropagation with the batch split over GPUs and the gradients all-reduced in a ring.

    The all-reduce begins with the backward pass, as early as could be.
    """
    examples = len(step.y)
    used = min(gpus, examples)
    gradients = parameters(step) * step.network.dtype.itemsize
    work = 3 * plan.pass_work(step, noisy=False) / machine.rate
    compute = math.ceil(examples / used) * work + 3 * machine.block
    rounds = 2 * (used - 1)
    total = max(compute, compute / 3 + rounds * (gradients / used / machine.bandwidth + machine.latency))
    return Prediction(
        gpus, used, total, _waiting(examples * work + 3 * used * machine.block, gpus, total), rounds * gradients, rounds
    )


def pipeline(step: Step, machine: Machine, gpus: int) -> Prediction:
    """A step of backpropagation with the layers split into stages, which work on micro-batches like an assembly line.

    As many micro-batches as are fastest; stages of equal work, cut where the fewest activations pass; transfers
    overlap with computing except when the line fills and empties.
    """
    stages = max(1, min(gpus, len(step.network.sites)))
    counts = {min(len(step.y), 2**power) for power in range(len(step.y).bit_length() + 1)} if stages > 1 else {1}
    tried = [_pipeline(step, machine, gpus, stages, micro) for micro in sorted(counts)]
    return min(tried, key=lambda prediction: prediction.seconds)


def _pipeline(step: Step, machine: Machine, gpus: int, stages: int, micro: int) -> Prediction:
    examples, size = len(step.y), step.network.dtype.itemsize
    rows = math.ceil(examples / micro)
    work = 3 * plan.pass_work(step, noisy=False) / machine.rate
    stage = (rows * work + 3 * machine.block) / stages
    boundaries = sorted(site.units for site in step.network.sites[:-1])[: stages - 1]
    messages = sum(machine.latency + rows * units * size / machine.bandwidth for units in boundaries)
    total = (micro + stages - 1) * stage + 2 * messages
    waiting = _waiting(micro * stages * stage, gpus, total)
    return Prediction(gpus, stages, total, waiting, 2.0 * examples * sum(boundaries) * size, 2 * (stages - 1))


def _waiting(computed: float, gpus: int, total: float) -> float:
    return max(0.0, 1 - computed / (gpus * total))
