"""The allotment of a step's forward passes to its sites: K, M and the way of redrawing of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from glr_dist.estimators.choices import AUTO, COPIES, FLIPS, HEAD, Candidate, Choice, Way, best, forward_passes, uniform
from glr_dist.estimators.head import SAMPLED
from glr_dist.estimators.step import Step
from glr_dist.estimators.variance_law import VarianceLaw
from glr_dist.estimators.work import copy_cost, elements_from
from glr_dist.sites import Site

Thresholds = Mapping[str, tuple[float, ...]]  # of the units behind each site whose units are piecewise constant
Laws = Mapping[str, Mapping[str, VarianceLaw]]  # by site and way of redrawing


@dataclass(frozen=True)
class Allotment:
    """K, M and the way of redrawing of each site.

    Attributes:
        step: number of the step whose batch the variances were measured on.
        copies, passes: K and M by site.
        flips: sites whose units are flipped.
        forward_passes: cost of a step.
        measuring: forward passes that the measurement took.
    """

    step: int
    copies: dict[str, int]
    passes: dict[str, int]
    flips: tuple[str, ...]
    forward_passes: float
    measuring: float = 0.0

    @classmethod
    def of(cls, choices: Sequence[Choice], step: int, measuring: float = 0.0) -> Allotment:
        """Returns the allotment that choices make up."""
        return cls(
            step=step,
            copies={choice.site.name: choice.copies for choice in choices},
            passes={choice.site.name: choice.passes for choice in choices},
            flips=tuple(choice.site.name for choice in choices if choice.way.how == FLIPS),
            forward_passes=forward_passes(choices),
            measuring=measuring,
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Allotment:
        """Returns the allotment that `state` describes."""
        return cls(**{**state, "flips": tuple(state["flips"])})

    def state(self) -> dict[str, Any]:
        """Returns a plain value, for a checkpoint."""
        return asdict(self) | {"flips": list(self.flips)}

    def same(self, other: Allotment) -> bool:
        """True if another allotment has the same K, M and ways of redrawing."""
        return (self.copies, self.passes, self.flips) == (other.copies, other.passes, other.flips)

    def __str__(self) -> str:
        sites = [
            f"{name} {'flips' if name in self.flips else copies} x {self.passes[name]}"
            for name, copies in self.copies.items()
        ]
        return f"copies x passes: {', '.join(sites)}; {self.forward_passes:.1f} forward passes a step"

    def applied(self, step: Step, thresholds: Thresholds) -> Step:
        """Returns a step with this K, M and way of redrawing at the sites that need an estimate."""
        return replace(
            step,
            copies={**step.copies, **self.copies},
            passes={**step.passes, **self.passes},
            flips={name: thresholds[name] for name in self.flips},
            spaces={name: space for name, space in step.spaces.items() if name not in self.flips},
        )


def has_copies(step: Step, site: Site) -> bool:
    """True if a site draws its noise as often as K says, so that its K can be chosen: False where the head decides."""
    return not (step.is_last(site) and step.head.kind != SAMPLED)


def candidates(step: Step, thresholds: Thresholds, allowed: Mapping[str, str], laws: Laws) -> list[Candidate]:
    """Returns the sites that need an estimate, and the ways in which they may be redrawn.

    Args:
        step: the step; its K counts where the head decides.
        thresholds: of the units that can be flipped.
        allowed: way of redrawing by site, as the option says; all but `flips` allow copies, `auto` also flips.
        laws: those that were measured.
    """
    found = []
    for site in step.learned():
        known = laws.get(site.name, {})
        ways = []
        if not has_copies(step, site):
            ways.append(Way(HEAD, site.suffix, known.get(HEAD), step.copies[site.name]))
        else:
            if allowed[site.name] != FLIPS:
                ways.append(Way(COPIES, copy_cost(step, site), known.get(COPIES)))
            if site.name in thresholds and allowed[site.name] in (FLIPS, AUTO):
                flips = site.units * len(thresholds[site.name])
                ways.append(Way(FLIPS, site.suffix, known.get(FLIPS), flips))
        if known:
            ways = [way for way in ways if way.law is not None]  # flips beyond the budget were not measured
        elements = elements_from(step.network.sites, site)
        found.append(Candidate(site.name, elements, tuple(ways), step.signs))
    return found


def first_allotment(
    step: Step, sites: Sequence[Candidate], budget: float, passes: Mapping[str, int] | None
) -> Allotment:
    """Returns the allotment before anything is measured: one K at all sites, and one shared pass unless M is given.

    Raises:
        ConfigError: the budget is too small.
    """
    chosen = passes or dict.fromkeys((site.name for site in sites), 1)
    return Allotment.of(uniform(sites, budget, chosen), step.number)


def best_allotment(
    step: Step, sites: Sequence[Candidate], budget: float, passes: Mapping[str, int] | None, measuring: float
) -> Allotment:
    """Returns the allotment that the measured variances suggest.

    Raises:
        ConfigError: the budget is too small.
    """
    return Allotment.of(best(sites, budget, passes), step.number, measuring)
