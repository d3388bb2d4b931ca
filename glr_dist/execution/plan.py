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

from glr_dist.estimators import Step, WorkItem
from glr_dist.execution.worker import numbers_of
from glr_dist.sites import Site, Tape

# FLOPs that take as long on one thread as … (fitted to measured items; float32)
_NOISE = 100  # an element of noise: drawn, scaled, scored, weighed
_ACTIVATION = 150  # an element of noisy logits and what follows it up to the next site's
_QR = 10  # D·rows² of a frame of orthonormal rows (float64)
_BLOCK = 5_000_000  # a block of directions, or a pass, however small: the calls of a few dozen operators


# ---------------------------------------------------------------- the work of an item


def matmul_work(step: Step, item: WorkItem) -> float:
    """The FLOPs of an item's products and convolutions, from the FLOPs of one example's forward pass.

    One site: its suffix for C·n rows (twice, with `exact_head` behind it), and its parameter gradients where the item
    forms them. All sites (`joint`): whole passes of C·n rows with the gradients of each copy. `pathwise`: three
    passes, since a backward pass costs about two forward ones.
    """
    network, n = step.network, _examples(step, item)
    if not item.directions:
        return 3.0 * network.flops * n
    copies = step.signs * directions(item)
    if item.site is not None:
        site = network.by_name[item.site]
        exact = step.options.exact_head and site.index == len(network.sites) - 1
        work = (2 if exact else 1) * site.suffix * network.flops * copies * n
        return work if step.keeps_delta(site) or not site.owned else work + gradient_work(step, site, n)
    first = network.sites[0]
    once = sum(network.block_flops[: first.block + 1]) if first.top else 0.0  # of a pass, for all its copies
    work = len(item.directions) * once * n + first.suffix * network.flops * copies * n
    for site in step.learned():
        if site.owned:
            work += gradient_work(step, site, len(item.directions) * n if site is first and first.top else copies * n)
    return work


def gradient_work(step: Step, site: Site, rows: int) -> float:
    """FLOPs of (∂z/∂θ)ᵀ δ for δ [rows, D]: those of the layer's forward pass, or three times its whole segment's."""
    direct = site.name in step.rules
    blocks = step.network.block_flops[site.block if direct else site.start : site.block + 1]
    return (1.0 if direct else 3.0) * sum(blocks) * rows


def element_work(step: Step, item: WorkItem) -> float:
    """What the noise, scores and activations of an item cost beside its products, in FLOPs."""
    sites, n, count = step.network.sites, _examples(step, item), directions(item)
    if not sites:
        return 0.0
    first = sites[0] if item.site is None else step.network.by_name[item.site]
    drawn = sites if item.site is None else (first,)
    after: int = max(sum(site.units for site in sites[first.index :]), first.width)
    if not item.directions:
        return float(3 * _ACTIVATION * n * after)
    return float(n * count) * (_NOISE * sum(site.units for site in drawn) + _ACTIVATION * step.signs * after)


def frame_work(step: Step, item: WorkItem) -> float:
    """What the orthonormal frames that an item draws from cost in FLOPs, where the actor does not have them yet.

    They are made on the CPU, whatever the device. An actor keeps the last few, and items of all example blocks of a
    shared pass and site draw from the same: a frame costs once for each actor that needs it.
    """
    if step.options.sampler != "orthogonal" or not item.directions:
        return 0.0
    sites = step.network.sites if item.site is None else (step.network.by_name[item.site],)
    return sum(_frames(item, site.units) for site in sites)


def item_work(step: Step, item: WorkItem) -> float:
    """Predicted work of an item in FLOPs: products, elements, and a charge for each pass that it runs."""
    return matmul_work(step, item) + element_work(step, item) + _BLOCK * passes_of(item)


def passes_of(item: WorkItem) -> int:
    """How many passes, one after the other, an item runs: one for each block of directions, three of `pathwise`."""
    return len(item.directions) or 3


def pass_work(step: Step, *, noisy: bool) -> float:
    """FLOPs of one example's forward pass, with its activations and, where it is noisy, its noise."""
    units: int = sum(site.units for site in step.network.sites)
    return step.network.flops + (_ACTIVATION + (_NOISE if noisy else 0)) * units


def directions(item: WorkItem) -> int:
    """R, how many directions an item redraws."""
    return sum(block.stop - block.start for block in item.directions)


def _examples(step: Step, item: WorkItem) -> int:
    """The examples of the item's block: the last one may be shorter."""
    examples = step.examples_of(item.example_block)
    count: int = examples.stop - examples.start
    return count


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
    return item.site, directions(item), _examples(step, item)


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
    """Bytes that an item gives back: δ [n, D] or parameter gradients, gradients of log-scales, and a loss."""
    network, size = step.network, step.network.dtype.itemsize
    sites = step.learned() if item.site is None else (network.by_name[item.site],)
    formed = network.parameters.keys() if not item.directions else {name for site in sites for name in site.owned}
    total: int = torch.get_default_dtype().itemsize  # the loss
    total += sum(_bytes(step.log_scales[site.name]) for site in sites if site.name in step.log_scales)
    if item.site is not None and sites[0].owned and step.keeps_delta(sites[0]):
        return total + _examples(step, item) * sites[0].units * size
    return total + sum(_bytes(network.parameters[name]) for name in formed)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
