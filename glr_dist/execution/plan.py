"""Cost of a step before it runs: the work of its items, their distribution over actors, and the bytes sent.

Work is in FLOPs (a product and its sum are two), plus a charge for every element of noise and activation, so that a
small network is not predicted to cost nothing. Measured item times correct it (`Costs`).

Shapes: S signs, R directions, C = S·R copies, n examples of an example block, D units of a site.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from glr_dist.estimators import ESTIMATORS, Step, WorkItem
from glr_dist.estimators.work import ItemWork, direction_count, example_count, redrawn_count
from glr_dist.execution.worker import numbers_of
from glr_dist.sites import Tape
from glr_dist.trees import leaves

# Cost in FLOPs on one thread, fitted to measured items (float32).
_NOISE = 100  # an element of noise: drawn, scaled, scored, weighed
_ACTIVATION = 150  # an element of noisy logits and what follows it up to the next site's
_QR = 10  # D·rows² of a frame of orthonormal rows (float64)
_BLOCK = 5_000_000  # a block of directions, or a pass, however small: the calls of a few dozen operators


# ---------------------------------------------------------------- the work of an item


def work_of(step: Step, item: WorkItem) -> ItemWork:
    """Returns the work of an item, as its estimator states it."""
    return ESTIMATORS[step.options.name].work(step, item)


def frame_work(step: Step, item: WorkItem) -> float:
    """FLOPs of the orthonormal frames and bases that an item needs, if the actor does not have them yet.

    Frames are made on the CPU, whatever the device. An actor keeps the last few, and items of all example blocks of a
    shared pass and site draw from the same: a frame costs once for each actor that needs it. So does the basis of each
    example's column space; an actor is charged for those of all examples.
    """
    work = work_of(step, item)
    frames = work.frames if step.options.sampler == "orthogonal" else ()
    return work.bases + sum(_frames(item, units) for units in frames)


def item_work(step: Step, item: WorkItem) -> float:
    """Predicted work of an item in FLOPs: products, elements, and a charge for each pass that it runs."""
    work = work_of(step, item)
    return work.flops + element_work(work) + _BLOCK * work.passes


def element_work(work: ItemWork) -> float:
    """FLOPs that an item's noise, scores and activations cost beside its products."""
    return _NOISE * work.noise + _ACTIVATION * work.activations


def pass_work(step: Step, *, noisy: bool) -> float:
    """FLOPs of one example's forward pass, with its activations and, if it is noisy, its noise."""
    units: int = sum(site.units for site in step.network.sites)
    return step.network.flops + (_ACTIVATION + (_NOISE if noisy else 0)) * units


def _frames(item: WorkItem, units: int) -> float:
    numbers = {
        frame for block in item.directions for frame in range(block.start // units, (block.stop - 1) // units + 1)
    }
    total = item.directions[0].total
    work: float = sum(_QR * units * min(units, total - frame * units) ** 2 for frame in numbers)
    return work


# ---------------------------------------------------------------- seconds


class Costs:
    """Predicts the seconds of work items from their work, corrected by measurements.

    Args:
        rate: FLOPs per second until the first measurement.
    """

    _MEMORY = 20  # length of the running mean, in measurements: machines get slower and faster

    def __init__(self, rate: float = 5e10) -> None:
        self._rate = rate
        self._work, self._seconds = 0.0, 0.0
        self._means: dict[tuple[str | None, int, int], tuple[int, float]] = {}

    def seconds(self, step: Step, item: WorkItem) -> float:
        """Returns the mean seconds of the item's kind, or a prediction from its work if that kind was not measured."""
        known = self._means.get(kind(step, item))
        return known[1] if known else item_work(step, item) / self.rate

    def observe(self, step: Step, item: WorkItem, seconds: float) -> None:
        """Records the seconds that an item took."""
        this = kind(step, item)
        count, mean = self._means.get(this, (0, 0.0))
        count = min(count + 1, self._MEMORY)
        self._means[this] = count, mean + (seconds - mean) / count
        keep = 1 - 1 / (self._MEMORY * len(self._means))
        self._work = keep * self._work + item_work(step, item)
        self._seconds = keep * self._seconds + seconds

    @property
    def rate(self) -> float:
        """FLOPs per second, over all kinds."""
        return self._work / self._seconds if self._seconds > 0 else self._rate


def kind(step: Step, item: WorkItem) -> tuple[str | None, int, int]:
    """Returns the kind of an item, (site, directions, redrawn examples): items of one kind take the same time."""
    return item.site, direction_count(item), redrawn_count(step, item)


# ---------------------------------------------------------------- who does which


def pack(seconds: Sequence[float], actors: int) -> list[list[int]]:
    """Assigns items to actors, longest first, each to the actor with the smallest load (LPT; ties by number).

    The largest load is at most 4/3 - 1/(3·actors) of the best possible one.

    Args:
        seconds: seconds of each item.
        actors: number of actors, at least 1.

    Returns:
        For each actor the numbers of its items, in the order in which it computes them.
    """
    loads = [(0.0, actor) for actor in range(actors)]
    packed: list[list[int]] = [[] for _ in loads]
    for number in sorted(range(len(seconds)), key=lambda number: (-seconds[number], number)):
        load, actor = loads[0]
        packed[actor].append(number)
        heapq.heapreplace(loads, (load + seconds[number], actor))
    return packed


def lanes(seconds: Sequence[float], actors: int) -> list[list[int]]:
    """Assigns a contiguous range of the items to each actor, sorted longest first, so that one kind stays together.

    Items of a site draw from the same orthonormal frames, which an actor makes only if it needs them, so each actor
    should get few sites. The loads differ by less than one item.

    Args:
        seconds: seconds of each item.
        actors: number of actors, at least 1.
    """
    cut: list[list[int]] = [[] for _ in range(actors)]
    total, before = sum(seconds) or 1.0, 0.0
    for number in sorted(range(len(seconds)), key=lambda number: (-seconds[number], number)):
        middle = before + seconds[number] / 2
        cut[min(int(actors * middle / total), actors - 1)].append(number)
        before += seconds[number]
    return cut


def batches(seconds: Sequence[float], actors: int, least: float) -> list[tuple[int, list[int]]]:
    """Groups items into calls, each with the actor that should compute it; an idle actor may take over.

    Each call of an actor has half of the actor's remaining work, so that all actors finish together.

    Args:
        seconds: seconds of each item.
        actors: number of actors.
        least: minimum seconds of work per call (or a tenth of an actor's share, if that is more).

    Returns:
        (actor, numbers of the items), in the order of the calls: the first call of each actor, then the second, ….
    """
    least = max(least, sum(seconds) / (10 * actors))
    calls: list[list[list[int]]] = []
    for lane in lanes(seconds, actors):
        left, taken = sum(seconds[number] for number in lane), 0.0
        mine: list[list[int]] = [[]]
        for number in lane:
            if mine[-1] and taken >= max(least, left / 2):
                left -= taken
                taken = 0.0
                mine.append([])
            mine[-1].append(number)
            taken += seconds[number]
        calls.append(mine)
    turns = itertools.zip_longest(*calls)
    return [(actor, call) for turn in turns for actor, call in enumerate(turn) if call]


def makespan(seconds: Sequence[float], packed: Iterable[Iterable[int]]) -> float:
    """Returns the seconds until the last actor has finished."""
    return max((sum(seconds[number] for number in numbers) for numbers in packed), default=0.0)


# ---------------------------------------------------------------- bytes that `layers` sends


def state_bytes(step: Step) -> int:
    """Bytes sent once per step: all parameters and buffers, scales, learned log-scales, and the batch."""
    return sum(map(_bytes, (*numbers_of(step), *leaves((step.x, step.y)))))


def tape_bytes(step: Step, tape: Tape) -> int:
    """Bytes of one example block's tape as sent to items; inputs only for sites whose gradients the items form."""
    formed = step.formed_by_items()
    inputs = [x for name, x in tape.inputs.items() if name in formed]
    return sum(
        map(_bytes, leaves([tape.logits, inputs, tape.starts, tape.losses, tape.u, tape.errors, tape.statistics]))
    )


def partial_bytes(step: Step, item: WorkItem) -> int:
    """Bytes that an item returns: δ [n, D] or parameter gradients, gradients of log-scales, and a loss."""
    network, work = step.network, work_of(step, item)
    total: int = torch.get_default_dtype().itemsize  # the loss
    total += sum(_bytes(step.log_scales[name]) for name in work.scales)
    total += sum(_bytes(network.parameters[name]) for name in work.grads)
    total += sum(_bytes(step.feedback[name].matrix) for name in work.moments)
    return total + (example_count(step, item) * work.delta.units * network.dtype.itemsize if work.delta else 0)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
