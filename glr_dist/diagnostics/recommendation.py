"""The options with the fewest forward passes that reach a cosine at every site, from the measured variance laws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from glr_dist.config import Config, Estimator
from glr_dist.config.estimator import UNIT_WISE
from glr_dist.diagnostics.estimates import Batch, Networks, norm_squared, rebuilt
from glr_dist.estimators.allotment import Laws, candidates
from glr_dist.estimators.choices import AUTO, COPIES, HEAD, Choice, cheapest, forward_passes
from glr_dist.estimators.step import Step
from glr_dist.estimators.variance_law import VarianceLaw, cosine_of
from glr_dist.execution.measure import measured
from glr_dist.glr import GLR

PASSES = 16  # shared passes of a measurement
_BOUND = 1e6  # a budget that never binds, for a network whose K is not used
_WORTH = 0.95  # an alternative is shown if it takes at most this share of the forward passes


@dataclass(frozen=True)
class Recommendation:
    """K, M and the way of redrawing of each site that reach a cosine at every site.

    Attributes:
        cosine: the cosine.
        head, redraw: options of the estimator.
        copies, passes: options of the estimator, by site; None if more than some thousand passes would be needed. K is
            empty if no site draws copies.
        forward_passes: cost of a step; None likewise.
        cosines: predicted cosine by site.
        changed: True if `head` or `redraw` differ from the configuration.
    """

    cosine: float
    head: str
    redraw: str | Mapping[str, str]
    copies: dict[str, int] | None
    passes: dict[str, int] | None
    forward_passes: float | None
    cosines: dict[str, float]
    changed: tuple[str, ...]

    def options(self) -> list[str]:
        """Returns the overrides of a configuration that apply it."""
        assert self.copies is not None
        assert self.passes is not None
        options = [f"estimator.copies={_option(self.copies)}"] if self.copies else []
        options += [f"estimator.passes={_option(self.passes)}"]
        options += [f"estimator.head={self.head}"] if "head" in self.changed else []
        return options + ([f"estimator.redraw={_option(self.redraw)}"] if "redraw" in self.changed else [])

    def __str__(self) -> str:
        goal = f"for cosine {self.cosine:g} at every site: "
        if self.forward_passes is None:
            return f"{goal}too many passes with these options"
        return f"{goal}{' '.join(self.options())}, {self.forward_passes:.1f} forward passes"


def recommendations(
    config: Config, networks: Networks, batch: Batch, reference: Mapping[str, Tensor]
) -> tuple[Recommendation, ...]:
    """Returns the recommendation for the configuration, and better ones with another head or way of redrawing.

    Args:
        config: the configuration.
        networks, batch: what is measured.
        reference: estimates of the true gradient by site [C, P].
    """
    found: list[Recommendation] = []
    kinds: set[str] = set()
    for head in heads(config):
        configured, free = (_unbounded(config, networks, head, redraw) for redraw in (config.estimator.redraw, "auto"))
        step = free.bind(batch.x, batch.y, batch.loss)
        if step.head.kind in kinds:
            continue
        kinds.add(step.head.kind)
        if config.estimator.redraw == "auto":
            laws = _measured(config, free, batch, reference, free.ways)
            found.append(_recommended(config, head, "auto", free, batch, laws, free.ways))
            continue
        spaces = configured.bind(batch.x, batch.y, batch.loss).spaces
        ways = {site: how if how in UNIT_WISE else COPIES for site, how in configured.ways.items()}
        tried = {site: how if how in UNIT_WISE else AUTO for site, how in ways.items()}
        if spaces.keys() == step.spaces.keys():  # one measurement for both
            laws = _measured(config, free, batch, reference, tried)
            found.append(_recommended(config, head, config.estimator.redraw, free, batch, laws, ways))
        else:
            laws = _measured(config, configured, batch, reference, ways)
            found.append(_recommended(config, head, config.estimator.redraw, configured, batch, laws, ways))
            laws = _measured(config, free, batch, reference, tried)
        found.append(_recommended(config, head, "auto", free, batch, laws, tried))
    first, *others = found
    worth: list[Recommendation] = []
    for other in others:
        least = min((r.forward_passes for r in [first, *worth] if r.forward_passes is not None), default=None)
        if other.forward_passes is not None and (least is None or other.forward_passes <= _WORTH * least):
            worth.append(other)
    return first, *worth


def heads(config: Config) -> list[str]:
    """Returns the heads to compare: that of the configuration, and the best one."""
    return list(dict.fromkeys([config.estimator.head, "auto"]))


def can_recommend(estimator: Estimator) -> bool:
    """True if the variance of an estimator follows the law: `conditional` without bias or dependent directions.

    The law is for redraws of all examples.
    """
    return (
        estimator.name == "conditional"
        and estimator.share == 1
        and estimator.sampler != "sobol"
        and estimator.baseline != "leave_one_out"
        and estimator.feedback != "biased"
    )


def _unbounded(config: Config, networks: Networks, head: str, redraw: str | Mapping[str, str]) -> GLR:
    """Returns the network with a head, a way of redrawing, and free K and M."""
    options = rebuilt(config.estimator, copies="auto", passes="auto", redraw=redraw, budget=_BOUND, head=head)
    return networks.net(config.model_copy(update={"estimator": options}))


def _measured(
    config: Config, net: GLR, batch: Batch, reference: Mapping[str, Tensor], ways: Mapping[str, str]
) -> dict[str, dict[str, VarianceLaw]]:
    """Returns the variance laws of the sites, with the reference's |g|²."""
    step = net.bind(batch.x, batch.y, batch.loss)
    limits = dict.fromkeys(ways, 2 * max(config.diagnose.copies))
    laws, _ = measured(net.executor, net.estimator, step, PASSES, limits, net.unit_wise, ways, batch.bar.update)
    return {site: _with_gradient(laws[site], norm_squared(reference[site])) for site in laws if site in reference}


def _recommended(
    config: Config,
    head: str,
    redraw: str | Mapping[str, str],
    net: GLR,
    batch: Batch,
    laws: Laws,
    ways: Mapping[str, str],
) -> Recommendation:
    """Returns the recommendation among the given ways of redrawing; `redraw` is the option that they come from."""
    step, goal = net.bind(batch.x, batch.y, batch.loss), config.diagnose.cosine
    sites = [site for site in candidates(step, net.unit_wise, ways, laws) if site.name in laws]
    choices = cheapest(sites, goal) if all(site.ways for site in sites) else None
    if redraw == "auto" and choices is not None:
        redraw = _named(choices, step)
    changed = [key for key, value in (("head", head), ("redraw", redraw)) if value != getattr(config.estimator, key)]
    if choices is None:
        return Recommendation(goal, head, redraw, None, None, None, {}, tuple(changed))
    names = [site.name for site in step.network.sites]
    return Recommendation(
        cosine=goal,
        head=head,
        redraw=redraw,
        copies=_by_site([choice for choice in choices if choice.way.how == COPIES], names, "copies"),
        passes=_by_site(choices, names, "passes"),
        forward_passes=forward_passes(choices),
        cosines={choice.site.name: cosine_of(choice.relative) for choice in choices},
        changed=tuple(changed),
    )


def _named(choices: Sequence[Choice], step: Step) -> str | dict[str, str]:
    """Returns the chosen ways of redrawing as an option; `auto` with a K that is given would choose by itself."""
    ways = {}
    for choice in choices:
        name, how = choice.site.name, choice.way.how
        if how == COPIES:
            how = "column_space" if name in step.spaces else "levels" if name in step.levels else COPIES
        if how != HEAD:
            ways[name] = how
    if len(found := set(ways.values()) | ({COPIES} if len(ways) < len(step.network.sites) else set())) == 1:
        return found.pop()
    return ways if len(ways) == len(step.network.sites) else {**ways, "*": COPIES}


def _by_site(choices: list[Choice], names: list[str], what: str) -> dict[str, int]:
    """Returns K or M by site; `*` stands for sites where it has no effect."""
    values: dict[str, int] = {choice.site.name: getattr(choice, what) for choice in choices}
    if 0 < len(values) < len(names):
        values["*"] = min(values.values())
    return values


def _with_gradient(laws: Mapping[str, VarianceLaw], norm: float) -> dict[str, VarianceLaw]:
    """Puts the reference's |g|² into laws, unless it is pure noise (NaN)."""
    return {how: replace(law, gradient=norm if norm > 0 else law.gradient) for how, law in laws.items()}


def _option(values: str | Mapping[str, object]) -> str:
    """Returns an option by site as an override: one value if all are equal, else a mapping."""
    if isinstance(values, str):
        return values
    if len(found := list(dict.fromkeys(values.values()))) == 1:
        return str(found[0])
    return "'" + json.dumps(values) + "'"
