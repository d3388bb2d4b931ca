"""What a step costs before it is run: the work of its items, who does which, and the bytes that travel.

Work is in FLOPs (a product and its sum are two), with a charge for every element of noise and activation, so that a
small network is not predicted to be free. Measured item times correct it (`Costs`).

Shapes: S signs, R directions, C = S·R copies, n examples of an example block, D units of a site.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from glr_dist.estimators import ESTIMATORS, Step, WorkItem
from glr_dist.estimators.work import ItemWork, direction_count, example_count
from glr_dist.execution.worker import numbers_of
from glr_dist.sites import Tape

# FLOPs that take as long on one thread as … (fitted to measured items; float32)
_NOISE = 100  # an element of noise: drawn, scaled, scored, weighed
_ACTIVATION = 150  # an element of noisy logits and what follows it up to the next site's
_QR = 10  # D·rows² of a frame of orthonormal rows (float64)
_BLOCK = 5_000_000  # a block of directions, or a pass, however small: the calls of a few dozen operators


# ---------------------------------------------------------------- the work of an item


def work_of(step: Step, item: WorkItem) -> ItemWork:
    """Returns the work of an item, as its estimator states it."""
    return ESTIMATORS[step.options.name].work(step, item)


def frame_work(step: Step, item: WorkItem) -> float:
    """FLOPs of the orthonormal frames that an item draws from, if the actor does not have them yet.

    They are made on the CPU, whatever the device. An actor keeps the last few, and items of all example blocks of a
    shared pass and site draw from the same: a frame costs once for each actor that needs it.
    """
    if step.options.sampler != "orthogonal":
        return 0.0
    return sum(_frames(item, site.units) for site in work_of(step, item).frames)


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
    """Seconds of work items: predicted from their work, corrected by what was measured.

    Args:
        rate: FLOPs per second before anything was measured.
    """

    _MEMORY = 20  # measurements that a mean looks back on: machines get slower and faster

    def __init__(self, rate: float = 5e10) -> None:
        self._rate = rate
        self._work, self._seconds = 0.0, 0.0
        self._means: dict[tuple[str | None, int, int], tuple[int, float]] = {}

    def seconds(self, step: Step, item: WorkItem) -> float:
        """The mean of the items of this kind (site, directions, examples); of an unknown kind, by its work."""
        known = self._means.get(kind(step, item))
        return known[1] if known else item_work(step, item) / self.rate

    def observe(self, step: Step, item: WorkItem, seconds: float) -> None:
        """Takes up the seconds that an item took."""
        this = kind(step, item)
        count, mean = self._means.get(this, (0, 0.0))
        count = min(count + 1, self._MEMORY)
        self._means[this] = count, mean + (seconds - mean) / count
        keep = 1 - 1 / (self._MEMORY * len(self._means))
        self._work = keep * self._work + item_work(step, item)
        self._seconds = keep * self._seconds + seconds

    @property
    def rate(self) -> float:
        """FLOPs per second over all kinds."""
        return self._work / self._seconds if self._seconds > 0 else self._rate


def kind(step: Step, item: WorkItem) -> tuple[str | None, int, int]:
    """Items of one kind take the same time: site, directions, examples."""
    return item.site, direction_count(item), example_count(step, item)


# ---------------------------------------------------------------- who does which


def pack(seconds: Sequence[float], actors: int) -> list[list[int]]:
    """Items on actors, longest first, each to the actor with the least so far (LPT; ties by number).

    The longest load is at most 4/3 - 1/(3·actors) of the best possible one.

    Args:
        seconds: of each item.
        actors: how many, at least 1.

    Returns:
        For each actor the numbers of its items, in the order of its work.
    """
    loads = [(0.0, actor) for actor in range(actors)]
    packed: list[list[int]] = [[] for _ in loads]
    for number in sorted(range(len(seconds)), key=lambda number: (-seconds[number], number)):
        load, actor = loads[0]
        packed[actor].append(number)
        heapq.heapreplace(loads, (load + seconds[number], actor))
    return packed


def lanes(seconds: Sequence[float], actors: int) -> list[list[int]]:
    """Items on actors in one piece each: longest first, and items of one kind beside each other.

    Items of a site draw from the same orthonormal frames, which an actor makes only if it needs them: so each actor
    gets few sites. The loads differ by less than an item.

    Args:
        seconds: of each item.
        actors: how many, at least 1.
    """
    cut: list[list[int]] = [[] for _ in range(actors)]
    total, before = sum(seconds) or 1.0, 0.0
    for number in sorted(range(len(seconds)), key=lambda number: (-seconds[number], number)):
        middle = before + seconds[number] / 2
        cut[min(int(actors * middle / total), actors - 1)].append(number)
        before += seconds[number]
    return cut


def batches(seconds: Sequence[float], actors: int, least: float) -> list[tuple[int, list[int]]]:
    """Items for one call each, with the actor that should make it; others may, when they have nothing left.

    An actor's calls get shorter, each half of what it has left, so that all end together.

    Args:
        seconds: of each item.
        actors: who works on them.
        least: seconds of work that are worth a call (or a tenth of an actor's share, if that is more).

    Returns:
        (actor, numbers of the items), in the order of the calls: all actors' first ones, then all second ones, ….
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
    """The seconds until the last actor is done."""
    return max((sum(seconds[number] for number in numbers) for numbers in packed), default=0.0)


# ---------------------------------------------------------------- bytes that `layers` sends


def state_bytes(step: Step) -> int:
    """Bytes that go out once a step: all parameters and buffers, scales, learned log-scales, and the batch."""
    return sum(map(_bytes, (*numbers_of(step), step.x, step.y)))


def tape_bytes(step: Step, tape: Tape) -> int:
    """Bytes of one example block's tape as items need it: inputs only for parameter gradients that items form."""
    formed = step.formed_by_items()
    inputs = (x for name, x in tape.inputs.items() if name in formed)
    return sum(map(_bytes, (*tape.logits.values(), *inputs, *tape.starts.values(), tape.losses)))


def partial_bytes(step: Step, item: WorkItem) -> int:
    """Bytes that an item returns: δ [n, D] or parameter gradients, gradients of log-scales, and a loss."""
    network, work = step.network, work_of(step, item)
    total: int = torch.get_default_dtype().itemsize  # the loss
    total += sum(_bytes(step.log_scales[name]) for name in work.scales)
    total += sum(_bytes(network.parameters[name]) for name in work.grads)
    return total + (example_count(step, item) * work.delta.units * network.dtype.itemsize if work.delta else 0)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
