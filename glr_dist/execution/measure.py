"""Measures the variance laws of the sites of a step, on its batch and its executor.

A few shared passes are run. In each, a site redraws two frames of directions, or as many as a limit allows, and each
frame in two halves, whose mean gradients G differ by chance alone:

    |G₁ - G₂|²               of two halves of a frame: `direction` · (1/h₁ + 1/h₂), h directions each
    |F₁ - F₂|² / 2           of two frames: `frame`
    the variance over passes of the mean of all of them: between + within

The noise comes from streams of its own, which no estimate uses: an allotment that depends on these measurements does
not depend on the noise of the estimates, which therefore stay unbiased. Items and sums have the same bits on every
executor.

Shapes: P parameters of a site, flattened.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glr_dist.config.estimator import UNIT_WISE
from glr_dist.estimators import Estimator, Partial, Step, WorkItem
from glr_dist.estimators.allotment import has_copies
from glr_dist.estimators.choices import AUTO, COPIES, HEAD
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.estimators.unit_wise import UnitWise, move_cost, replay_count
from glr_dist.estimators.variance_law import VarianceLaw
from glr_dist.estimators.work import copy_cost
from glr_dist.execution.executor import Executor, TapedItem
from glr_dist.execution.reproducible import reproducible
from glr_dist.sites import Site

_FIRST_STEP = 2**42  # steps from here on key the noise of measurements
_MOST_COPIES = 2**20  # limit where redraws cost nothing
_MOST_ROWS = 64  # directions of a half where there are no frames
_FAINTEST = 1e-2  # least |g|² relative to the variance of its estimate, where noise hides the gradient


PASSES = 8  # shared passes of a measurement in training


def limits_of(step: Step, budget: float) -> dict[str, int]:
    """Returns the maximum number of copies of each site in one pass of a measurement.

    All redraws of one pass together take at most twice the budget, each site the same share.

    Args:
        step: the step.
        budget: forward passes of a step.
    """
    sites = step.learned()
    share = 2 * budget / max(1, len(sites))
    return {site.name: int(min(share / max(copy_cost(step, site), 1e-12), _MOST_COPIES)) for site in sites}


def measured(
    executor: Executor,
    estimator: Estimator,
    step: Step,
    passes: int,
    limits: Mapping[str, int],
    unit_wise: Mapping[str, UnitWise],
    ways: Mapping[str, str],
    advance: Callable[[], object] = lambda: None,
) -> tuple[dict[str, dict[str, VarianceLaw]], float]:
    """Measures the variance laws of the sites that need an estimate.

    Args:
        executor: computes the items; the network does not have the hooks of a pass.
        estimator: `conditional`.
        step: the step, verified; its K, M and unit-wise redraws do not count, except for the K of the head.
        passes: number of shared passes, at least 2.
        limits: maximum number of copies of a site in one pass, by site; unit by unit is left out where it costs more.
        unit_wise: the way of redrawing of the sites that may be redrawn unit by unit.
        ways: way of redrawing by site; a site that must be redrawn unit by unit is measured so, whatever its limit.
        advance: called after each pass.

    Returns:
        The laws by site and way of redrawing (`copies`, `flips`, `differences`, `head`), and the forward passes that it
        took.
    """
    alone = replace(
        step,
        number=_FIRST_STEP + step.number,
        passes=dict.fromkeys((site.name for site in step.network.sites), passes),
        unit_wise={},
    )
    sites = alone.learned()
    free = {site.name for site in sites if has_copies(alone, site)}
    moved = {site.name: replay_count(unit_wise, site) for site in sites if site.name in free and site.name in unit_wise}

    def affordable(name: str, copies: int) -> bool:
        site = alone.network.by_name[name]
        return copies * move_cost(alone.network, site) <= limits[name] * copy_cost(alone, site)

    turned = [k for k, v in moved.items() if ways[k] in UNIT_WISE or (ways[k] == AUTO and affordable(k, v))]
    first = tuple(site for site in sites if site.name not in free or ways[site.name] not in UNIT_WISE)
    plans = {site.name: _Halves.of(alone, site, limits[site.name]) for site in first if site.name in free}
    drawn = replace(alone, copies={**alone.copies, **{name: plan.copies for name, plan in plans.items()}})
    again = tuple(site for site in sites if site.name in turned)
    by_unit = replace(
        alone,
        unit_wise={name: unit_wise[name] for name in turned},
        spaces={name: space for name, space in alone.spaces.items() if name not in turned},
        copies={**alone.copies, **moved},
    )
    laws: dict[str, dict[str, VarianceLaw]] = {site.name: {} for site in sites}
    cost = 0.0
    for run, chosen, halves in ((drawn, first, plans), (by_unit, again, {})):
        if chosen:
            found, spent = _laws(executor, estimator, run, passes, chosen, halves, advance)
            cost += spent
            for name, law in found.items():
                laws[name] |= law
    return laws, cost


@dataclass(frozen=True)
class _Halves:
    """Directions of a site in one pass: halves of frames, each cut into blocks.

    Attributes:
        parts: the halves; two of a frame follow each other.
        rows: directions of each half.
        frame: D, if directions are drawn in frames.
        copies: K of all of them.
    """

    parts: tuple[tuple[DirectionBlock, ...], ...]
    rows: tuple[int, ...]
    frame: int | None
    copies: int

    @classmethod
    def of(cls, step: Step, site: Site, limit: int) -> _Halves:
        """Returns two frames in halves where `limit` copies allow it, else a part of one, else independent groups."""
        most = max(limit // step.signs, 2)
        d = step.redrawn(site) if step.options.sampler == "orthogonal" else None
        if d is None or d == 1:
            half = min(_MOST_ROWS, most // 2)
            edges, frame = [0, half, 2 * half], None
        elif most >= 2 * d:
            edges, frame = [0, d // 2, d, d + d // 2, 2 * d], d
        else:
            rows = min(d, most)
            edges, frame = [0, rows // 2, rows], d
        size = max(1, step.block_elements // (step.signs * step.options.example_block * site.width))
        parts: list[tuple[DirectionBlock, ...]] = []
        number = 0
        for start, stop in itertools.pairwise(edges):
            count = -(-(stop - start) // size)
            cuts = [start + (stop - start) * i // count for i in range(count + 1)]
            blocks = [DirectionBlock(number + i, a, b, edges[-1]) for i, (a, b) in enumerate(itertools.pairwise(cuts))]
            number += count
            parts.append(tuple(blocks))
        rows_of = tuple(b - a for a, b in itertools.pairwise(edges))
        return cls(tuple(parts), rows_of, frame, step.signs * edges[-1])


class _Moments:
    """Sums over the passes from which the law of one site follows."""

    def __init__(self, plan: _Halves | None) -> None:
        self.plan, self.passes = plan, 0
        self.total: Tensor | None = None
        self.squares = self.direction = self.frame = 0.0

    def add(self, parts: Sequence[Tensor]) -> None:
        """Adds the mean gradients [P] of the halves of one pass."""
        self.passes += 1
        if self.plan is None:
            (mean,) = parts
        else:
            rows, frames = self.plan.rows, []
            for i in range(0, len(parts), 2):
                h1, h2 = rows[i], rows[i + 1]
                pairs = len(parts) // 2
                self.direction += _square(parts[i] - parts[i + 1]) / (1 / h1 + 1 / h2) / pairs
                frames.append((h1 * parts[i] + h2 * parts[i + 1]) / (h1 + h2))
            mean = frames[0]
            if len(frames) == 2:
                self.frame += _square(frames[0] - frames[1]) / 2
                mean = (frames[0] + frames[1]) / 2
        self.squares += _square(mean)
        self.total = mean.clone() if self.total is None else self.total.add_(mean)

    def law(self) -> VarianceLaw:
        """Returns the law."""
        assert self.total is not None
        number = self.passes
        whole = _square(self.total) / number
        variance = max(0.0, self.squares - whole) / (number - 1)
        faintest = _FAINTEST * variance / number or 1e-300
        gradient = max(whole / number - variance / number, faintest)
        if self.plan is None:
            return VarianceLaw(gradient, variance)
        direction, frame, d = self.direction / number, self.frame / number, self.plan.frame
        drawn = sum(self.plan.rows)
        if d is None:
            return VarianceLaw(gradient, max(0.0, variance - direction / drawn), 0.0, direction)
        # With one frame in each pass, `between` stands for between + frame: more frames then seem to gain nothing.
        law = VarianceLaw(gradient, 0.0, frame, direction, d)
        return replace(law, between=max(0.0, variance - law.within(drawn)))


def _square(x: Tensor) -> float:
    return float(x.dot(x))


def _laws(
    executor: Executor,
    estimator: Estimator,
    step: Step,
    passes: int,
    sites: Sequence[Site],
    plans: Mapping[str, _Halves],
    advance: Callable[[], object],
) -> tuple[dict[str, dict[str, VarianceLaw]], float]:
    """Runs the passes and returns the laws of the given sites, and the forward passes that it took."""
    moments = {site.name: _Moments(plans.get(site.name)) for site in sites}
    with reproducible(), torch.no_grad():
        executor.begin(estimator, step)
        with step.network.hooked():
            runs = (_items(executor, estimator, step, number, sites, plans) for number in range(passes))
            sums: dict[tuple[str, int], Tensor] = {}
            done = 0
            for taped, partial in executor.partials(estimator, step, runs):
                if taped.item.shared_pass > done:
                    _collect(sums, moments)
                    advance()
                    done = taped.item.shared_pass
                _add(sums, estimator, step, taped, partial, plans)
            _collect(sums, moments)
            advance()
    how = {site.name: COPIES if site.name in plans else HEAD for site in sites}
    how |= {name: way.name for name, way in step.unit_wise.items()}
    cost = passes * (1 + sum(copy_cost(step, site) * step.copies[site.name] for site in sites))
    return {name: {how[name]: found.law()} for name, found in moments.items()}, cost


def _items(
    executor: Executor,
    estimator: Estimator,
    step: Step,
    shared_pass: int,
    sites: Sequence[Site],
    plans: Mapping[str, _Halves],
) -> list[TapedItem]:
    """Runs a shared pass and returns its items."""
    tapes = dict(zip(step.example_blocks, executor.tapes(estimator, step, shared_pass), strict=True))
    usual = [item for item in estimator.items(step, shared_pass) if item.site not in plans]
    names = {site.name for site in sites}
    items = [item for item in usual if item.site in names]
    for name, plan in plans.items():
        items += [WorkItem(shared_pass, block, name, part) for block in step.example_blocks for part in plan.parts]
    return [TapedItem(item, tapes[item.example_block], True) for item in items]


def _add(
    sums: dict[tuple[str, int], Tensor],
    estimator: Estimator,
    step: Step,
    taped: TapedItem,
    partial: Partial,
    plans: Mapping[str, _Halves],
) -> None:
    """Adds an item's share of the mean gradient of its half, in the order of the items."""
    item = taped.item
    assert item.site is not None
    site, plan = step.network.by_name[item.site], plans.get(item.site)
    part = 0 if plan is None else plan.parts.index(item.directions)
    grads = partial.grads
    if item.site in partial.delta:
        delta = partial.delta[item.site]
        grads = estimator.finish(step, item.shared_pass, item.example_block, item.site, delta, taped.tape).grads
    found = [grads[name] for name in site.owned] or [partial.scales[item.site]]
    factor = float(step.passes[item.site])
    if plan is not None:
        factor *= plan.copies / (step.signs * plan.rows[part])
    share = torch.cat([grad.flatten() for grad in found]).double() * factor
    key = item.site, part
    sums[key] = sums[key].add_(share) if key in sums else share


def _collect(sums: dict[tuple[str, int], Tensor], moments: Mapping[str, _Moments]) -> None:
    """Adds the mean gradients of a pass to the moments of the sites."""
    for name, found in moments.items():
        number = 1 if found.plan is None else len(found.plan.parts)
        found.add([sums[name, part] for part in range(number)])
    sums.clear()
