"""Chooses K, M and the way of redrawing of each site from the variance laws: for a budget, or for a cosine.

A budget is spent where it lowers Σ log(1 + V / |g|²) over the sites, that is, raises the geometric mean of their
cosines; a site whose gradient is hopeless within the budget does not take it all from the others. No site
may have more variance than the worst one has in the uniform choice, the same K everywhere within the same budget. The
cost of a choice is counted in forward passes, and in elements of activations, so that sites whose redraws cost hardly
any FLOPs do not get copies without end: these elements may not exceed those of the uniform choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from glr_dist.errors import ConfigError
from glr_dist.estimators.variance_law import VarianceLaw

COPIES, HEAD, AUTO = "copies", "head", "auto"  # ways of redrawing; `head`: draws of the head, or none
_RATIO, _FINE = 1.25, 1.1  # between neighbouring values of M, and of K, that are tried
_MOST_PASSES, _MOST_DIRECTIONS = 2**12, 2**16  # values that `cheapest` tries
_COPIES_PER_PASS = 100  # limit of the copies that a uniform choice gets for each forward pass of the budget


@dataclass(frozen=True)
class Way:
    """A way of redrawing the noise of a site.

    Attributes:
        how: `copies`, `head`, or one of `UNIT_WISE`.
        cost: forward passes that a copy costs.
        law: its variance; None if it was not measured.
        copies: K if it is fixed, as unit by unit; None for copies.
        elements: elements of activations that a copy costs; None for those of the site.
    """

    how: str
    cost: float
    law: VarianceLaw | None = None
    copies: int | None = None
    elements: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A site and its ways of redrawing.

    Attributes:
        name: its name.
        elements: elements of activations that a copy costs.
        ways: the ways that are allowed.
        signs: copies that a direction gives: 2 for antithetic pairs, else 1.
    """

    name: str
    elements: int
    ways: tuple[Way, ...]
    signs: int = 2


@dataclass(frozen=True)
class Choice:
    """K, M and the way of redrawing of a site; `relative` is V / |g|², NaN if it was not measured."""

    site: Candidate
    way: Way
    copies: int
    passes: int
    relative: float = math.nan

    @property
    def cost(self) -> float:
        """Forward passes of the redraws."""
        return self.passes * self.copies * self.way.cost

    @property
    def loss(self) -> float:
        """log(1 + V / |g|²), which is -2 log of the cosine."""
        return math.log1p(self.relative)

    @property
    def elements(self) -> int:
        """Elements of activations of the redraws, per example."""
        each = self.site.elements if self.way.elements is None else self.way.elements
        return self.passes * self.copies * each


def forward_passes(choices: Sequence[Choice]) -> float:
    """Returns the cost of a step: its shared passes and its redraws."""
    return max((choice.passes for choice in choices), default=1) + sum(choice.cost for choice in choices)


def uniform(sites: Sequence[Candidate], budget: float, passes: Mapping[str, int]) -> list[Choice]:
    """Returns the first way of each site, with one K at all sites that are redrawn by copies, the greatest that fits.

    If not even the fewest copies fit, it is the cheapest way of each site.

    Args:
        sites: the sites.
        budget: forward passes of a step.
        passes: M by site.

    Raises:
        ConfigError: the budget is too small for the minimum number of copies.
    """

    def with_copies(copies: int, first: bool = True) -> list[Choice]:
        return [
            Choice(site, way, k, m, math.nan if way.law is None else way.law.relative(k // site.signs, m))
            for site in sites
            for way in [site.ways[0] if first else min(site.ways, key=lambda way: _least(site, way))]
            for k, m in [(way.copies if way.copies is not None else copies, passes[site.name])]
        ]

    signs = max((site.signs for site in sites), default=1)
    low, high = 1, max(1, int(_COPIES_PER_PASS * budget) // signs)
    if (needed := forward_passes(with_copies(signs * low))) > budget:
        cheapest_ways = with_copies(signs * low, first=False)
        if forward_passes(cheapest_ways) <= budget:
            return cheapest_ways
        raise ConfigError(
            f"estimator.budget: {budget:g} forward passes are not enough: the fewest copies take {needed:.3g}"
        )
    while low < high:
        middle = (low + high + 1) // 2
        if forward_passes(with_copies(signs * middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return with_copies(signs * low)


def _least(site: Candidate, way: Way) -> float:
    """Returns the forward passes of the fewest copies of a way."""
    return way.cost * (site.signs if way.copies is None else way.copies)


def best(sites: Sequence[Candidate], budget: float, passes: Mapping[str, int] | None) -> list[Choice]:
    """Returns the choices within a budget with the greatest geometric mean of cosines, among those tried.

    The uniform choice is one K at all sites, and the given M, or one M at all sites with which the worst site has the
    least variance. No site has more variance than its worst one, the geometric mean is not lower than its own, and the
    redraws together do not have more elements of activations.

    Args:
        sites: the sites, with the law of each way.
        budget: forward passes of a step.
        passes: M by site; None if it may be chosen.

    Raises:
        ConfigError: the budget is too small for the minimum number of copies.
    """
    plain = _best_uniform(sites, budget, passes)
    elements = sum(choice.elements for choice in plain)
    tried = _grid(1, int(budget) - 1) if passes is None else [max((c.passes for c in plain), default=1)]
    menus = [[c, *_menu(c.site, tried if passes is None else [c.passes], budget - 1, elements)] for c in plain]
    worst = max((choice.relative for choice in plain), default=0.0)
    menus = [[c for c in menu if c.relative <= worst] for menu in menus]
    found = plain
    for most in tried:
        allowed = [[c for c in menu if c.passes <= most] for menu in menus]
        chosen = _spent(allowed, budget - most, elements)
        if chosen is not None and _total(chosen) < _total(found):
            found = chosen
    return found


def _best_uniform(sites: Sequence[Candidate], budget: float, passes: Mapping[str, int] | None) -> list[Choice]:
    """Returns the uniform choice with the given M, or with the M for which the worst site has the least variance."""
    if passes is not None:
        return uniform(sites, budget, passes)
    names = [site.name for site in sites]
    found = [uniform(sites, budget, dict.fromkeys(names, 1))]
    for number in _grid(2, int(budget) - 1, _FINE):
        with suppress(ConfigError):  # a pass more, and the fewest copies do not fit
            found.append(uniform(sites, budget, dict.fromkeys(names, number)))
    return min(found, key=lambda choices: max((choice.relative for choice in choices), default=0.0))


def _total(choices: Sequence[Choice]) -> tuple[float, float]:
    return sum(choice.loss for choice in choices), forward_passes(choices)


def cheapest(sites: Sequence[Candidate], cosine: float) -> list[Choice] | None:
    """Returns the choices with the fewest forward passes whose cosine is `cosine` at every site, among those tried.

    Returns:
        None if too many passes would be needed.
    """
    allowed = cosine**-2 - 1
    found: tuple[float, list[Choice]] | None = None
    menus = [[c for c in _menu(site, _grid(1, _MOST_PASSES)) if c.relative <= allowed] for site in sites]
    for most in _grid(1, _MOST_PASSES):
        if found is not None and most >= found[0]:
            break
        fitting = [[c for c in menu if c.passes <= most] for menu in menus]
        if all(fitting):
            choices = [min(menu, key=lambda c: (c.cost, c.elements)) for menu in fitting]
            if found is None or forward_passes(choices) < found[0]:
                found = forward_passes(choices), choices
    return None if found is None else found[1]


def _grid(first: int, last: int, ratio: float = _RATIO) -> list[int]:
    """Returns the numbers first … last whose ratio to the one before is about `ratio`, and `last`; `first` at least."""
    numbers, number = [], first
    while number < last:
        numbers.append(number)
        number = max(number + 1, round(number * ratio))
    return [*numbers, max(first, last)]


def _directions(rows: int | None, most: int) -> list[int]:
    """Returns the numbers of directions that are tried: parts of a frame, and whole frames."""
    if most < 1:
        return []
    if rows is None or most <= rows:
        return _grid(1, most, _FINE)
    return _grid(1, rows, _FINE) + [rows * q for q in (_grid(2, most // rows) if most >= 2 * rows else [])]


def _menu(site: Candidate, passes: Sequence[int], cost: float = math.inf, elements: float = math.inf) -> list[Choice]:
    """Returns the choices of a site within limits on its forward passes and its elements."""
    menu = []
    for way in site.ways:
        assert way.law is not None
        for m in passes:
            most = _MOST_DIRECTIONS
            for limit, each in ((cost, way.cost), (elements, site.elements)):
                if each > 0 and limit < math.inf:
                    most = min(most, int(limit / (m * site.signs * each)))
            drawn = [site.signs * r for r in _directions(way.law.rows, most)]
            for k in drawn if way.copies is None else [way.copies]:
                menu.append(Choice(site, way, k, m, way.law.relative(k // site.signs, m)))
    return [choice for choice in menu if choice.cost <= cost and choice.elements <= elements]


def _spent(menus: Sequence[list[Choice]], cost: float, elements: float) -> list[Choice] | None:
    """Spends a budget greedily along the convex hulls of the menus; returns None if the cheapest choices do not fit."""
    if not all(menus):
        return None

    def price(choice: Choice) -> float:
        return choice.cost / max(cost, 1e-9) + choice.elements / max(elements, 1e-9)

    hulls = [_hull(menu, price) for menu in menus]
    chosen = [hull[0] for hull in hulls]

    def fits(place: int, choice: Choice) -> bool:
        others = [c for i, c in enumerate(chosen) if i != place]
        return (
            sum(c.cost for c in others) + choice.cost <= cost
            and sum(c.elements for c in others) + choice.elements <= elements
        )

    if not fits(0, chosen[0]):
        return None
    steps = sorted(
        (-(before.loss - after.loss) / (price(after) - price(before)), place, number)
        for place, hull in enumerate(hulls)
        for number, (before, after) in enumerate(itertools.pairwise(hull), 1)
    )
    for _, place, number in steps:
        if fits(place, hulls[place][number]):
            chosen[place] = hulls[place][number]
    for place, choice in _improvements(menus):  # what is left over: whatever fits, the best first
        if choice.loss < chosen[place].loss and fits(place, choice):
            chosen[place] = choice
    return chosen


def _hull(menu: Sequence[Choice], price: Callable[[Choice], float]) -> list[Choice]:
    """Returns the lower convex hull of the losses against the prices, from the lowest price on."""
    hull: list[Choice] = []
    for choice in sorted(menu, key=lambda c: (price(c), c.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], choice, price):
            hull.pop()
        hull.append(choice)
    return hull


def _above(first: Choice, middle: Choice, last: Choice, price: Callable[[Choice], float]) -> bool:
    """True if the middle one of three points lies on or above the line between the others."""
    x = [price(c) for c in (first, middle, last)]
    return (first.loss - middle.loss) * (x[2] - x[0]) <= (first.loss - last.loss) * (x[1] - x[0])


def _improvements(menus: Sequence[list[Choice]]) -> Iterator[tuple[int, Choice]]:
    """Yields all choices of all sites, round by round, the lowest loss of each site first."""
    ordered = [sorted(menu, key=lambda c: (c.loss, c.cost, c.elements)) for menu in menus]
    for turn in range(max(map(len, ordered))):
        for place, menu in enumerate(ordered):
            if turn < len(menu):
                yield place, menu[turn]
