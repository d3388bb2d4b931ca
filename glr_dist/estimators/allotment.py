"""The allotment of a step's forward passes to its sites: K, M and the way of redrawing of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from glr_dist.config.estimator import UNIT_WISE
from glr_dist.estimators.choices import (
    AUTO,
    COPIES,
    HEAD,
    Candidate,
    Choice,
    Way,
    best,
    forward_passes,
    uniform,
)
from glr_dist.estimators.head import SAMPLED
from glr_dist.estimators.step import Step
from glr_dist.estimators.unit_wise import UnitWise, move_cost, replay_count, widest
from glr_dist.estimators.variance_law import VarianceLaw
from glr_dist.estimators.work import copy_cost, elements_from
from glr_dist.sites import Site

Laws = Mapping[str, Mapping[str, VarianceLaw]]  # by site and way of redrawing


@dataclass(frozen=True)
class Allotment:
    """K, M and the way of redrawing of each site.

    Attributes:
        step: number of the step whose batch the variances were measured on.
        copies, passes: K and M by site.
        unit_wise: the way of redrawing of the sites that are redrawn unit by unit.
        forward_passes: cost of a step.
        measuring: forward passes that the measurement took.
    """

    step: int
    copies: dict[str, int]
    passes: dict[str, int]
    unit_wise: dict[str, str]
    forward_passes: float
    measuring: float = 0.0

    @classmethod
    def of(cls, choices: Sequence[Choice], step: int, measuring: float = 0.0) -> Allotment:
        """Returns the allotment that choices make up."""
        return cls(
            step=step,
            copies={choice.site.name: choice.copies for choice in choices},
            passes={choice.site.name: choice.passes for choice in choices},
            unit_wise={choice.site.name: choice.way.how for choice in choices if choice.way.how in UNIT_WISE},
            forward_passes=forward_passes(choices),
            measuring=measuring,
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Allotment:
        """Returns the allotment that `state` describes."""
        state = dict(state)
        if "flips" in state:  # of a development version
            state["unit_wise"] = dict.fromkeys(state.pop("flips"), "flips")
        return cls(**state)

    def state(self) -> dict[str, Any]:
        """Returns a plain value, for a checkpoint."""
        return asdict(self)

    def same(self, other: Allotment) -> bool:
        """True if another allotment has the same K, M and ways of redrawing."""
        return (self.copies, self.passes, self.unit_wise) == (other.copies, other.passes, other.unit_wise)

    def __str__(self) -> str:
        sites = [
            f"{name} {self.unit_wise.get(name, copies)} x {self.passes[name]}" for name, copies in self.copies.items()
        ]
        return f"copies x passes: {', '.join(sites)}; {self.forward_passes:.1f} forward passes a step"

    def applied(self, step: Step, unit_wise: Mapping[str, UnitWise]) -> Step:
        """Returns a step with this K, M and way of redrawing at the sites that need an estimate."""
        return replace(
            step,
            copies={**step.copies, **self.copies},
            passes={**step.passes, **self.passes},
            unit_wise={name: unit_wise[name] for name in self.unit_wise},
            spaces={name: space for name, space in step.spaces.items() if name not in self.unit_wise},
        )


def has_copies(step: Step, site: Site) -> bool:
    """True if a site draws its noise as often as K says, so that its K can be chosen: False where the head decides."""
    return not (step.is_last(site) and step.head.kind != SAMPLED)


def candidates(
    step: Step, unit_wise: Mapping[str, UnitWise], allowed: Mapping[str, str], laws: Laws
) -> list[Candidate]:
    """Returns the sites that need an estimate, and the ways in which they may be redrawn.

    Args:
        step: the step; its K counts where the head decides.
        unit_wise: the way of redrawing of the sites that can be redrawn unit by unit.
        allowed: way of redrawing by site, as the option says; `auto` allows copies, and unit by unit.
        laws: those that were measured.
    """
    found = []
    for site in step.learned():
        known = laws.get(site.name, {})
        ways = []
        if not has_copies(step, site):
            ways.append(Way(HEAD, site.suffix, known.get(HEAD), step.copies[site.name]))
        else:
            if allowed[site.name] not in UNIT_WISE:
                ways.append(Way(COPIES, copy_cost(step, site), known.get(COPIES)))
            if site.name in unit_wise and allowed[site.name] in (*UNIT_WISE, AUTO):
                how, moved = unit_wise[site.name].name, replay_count(unit_wise, site)
                cost, elements = move_cost(step.network, site), widest(step.network, site)
                ways.append(Way(how, cost, known.get(how), moved, elements))
        if known:
            ways = [way for way in ways if way.law is not None]  # what is beyond the budget was not measured
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
