"""Combinations of settings that would bias the estimate or have no effect."""

from __future__ import annotations

from collections.abc import Mapping

from glr_dist.config.estimator import UNIT_WISE, Estimator
from glr_dist.config.noise import Noise
from glr_dist.errors import ConfigError

_ASYMMETRIC = ("gumbel",)
_OF_REDRAWS = (  # options without effect where nothing is redrawn
    "copies",
    "budget",
    "measure_every",
    "antithetic",
    "baseline",
    "redraw",
    "feedback",
    "head",
    "head_draws",
    "share",
)


def resolve_sampler(estimator: Estimator, noise: Noise) -> str:
    """Returns the estimator's sampler, with `auto` resolved."""
    if estimator.sampler != "auto":
        return estimator.sampler
    return "orthogonal" if noise.law == "gaussian" and estimator.name != "pathwise" else "iid"


def per_site(value: int | str | Mapping[str, int]) -> list[int]:
    """Returns the possible values of an option at a site: the number itself, or all values of a mapping by pattern.

    `auto` has no value yet.
    """
    if isinstance(value, str):
        return []
    return list(value.values()) if isinstance(value, Mapping) else [value]


def check_compile(compile: str, estimator: Estimator, where: str = "execution.compile") -> None:
    """Refuses compiled steps where nothing is redrawn one site at a time, or where their shapes change in training.

    Raises:
        ConfigError: with the reason.
    """
    if compile != "step":
        return
    if not can_compile(estimator):
        reason = (
            f"has no effect with {estimator.name!r}; it compiles the redraws of 'conditional' and 'layerwise'"
            if estimator.name not in ("conditional", "layerwise")
            else "needs fixed estimator.copies; with 'auto' they change in training"
        )
        raise ConfigError(f"{where}: 'step' {reason}; use 'none'")


def can_compile(estimator: Estimator) -> bool:
    """True if redraws of an estimator can be compiled: those of one site at a time, in shapes that stay."""
    return estimator.name in ("conditional", "layerwise") and estimator.copies != "auto"


def check_estimator(estimator: Estimator, noise: Noise, loss: str | None = None) -> None:
    """Refuses combinations that would bias the estimate or have no effect.

    Raises:
        ConfigError: with the reason.
    """
    e, law = estimator, noise.law
    if e.name == "pathwise":
        default = Estimator()
        for key in _OF_REDRAWS:
            if getattr(e, key) != getattr(default, key):
                raise ConfigError(
                    f"estimator.{key}: has no effect with 'pathwise', which does not redraw noise; leave it out"
                )
        if e.sampler not in ("auto", "iid"):
            raise ConfigError(
                f"estimator.sampler: {e.sampler!r} has no effect with 'pathwise', which does not redraw noise"
            )
        if not isinstance(e.passes, int):
            raise ConfigError("estimator.passes: 'pathwise' runs whole passes; give one number for all sites")
        if law == "none" and (e.passes != 1 or noise.learn != "none"):
            raise ConfigError("noise.law: 'none' allows only estimator.passes=1 and noise.learn=none")
        if loss == "zero_one":
            raise ConfigError(
                "training.loss: 'zero_one' does not have a derivative for 'pathwise'; use another estimator"
            )
        return
    if law == "none":
        raise ConfigError(f"noise.law: 'none' works only with the estimator 'pathwise'; {e.name!r} needs noise")
    if e.antithetic and law in _ASYMMETRIC:
        raise ConfigError(
            f"estimator.antithetic: pairs (ε, -ε) need a law that is symmetric about 0, and {law} is not; turn it off"
        )
    _check_budget(e)
    if e.antithetic and any(copies % 2 for copies in per_site(e.copies)):
        odd = next(copies for copies in per_site(e.copies) if copies % 2)
        raise ConfigError(f"estimator.copies: {odd} is odd, antithetic pairs need an even number")
    if e.sampler == "orthogonal" and law != "gaussian":
        raise ConfigError(
            f"estimator.sampler: 'orthogonal' needs the gaussian law, because a rotation changes the {law} law; "
            "use 'iid'"
        )
    if e.baseline == "leave_one_out":
        if e.sampler == "sobol":
            raise ConfigError(
                "estimator.baseline: 'leave_one_out' is biased within a sobol set; use 'shared' or 'none'"
            )
        if e.sampler == "orthogonal" and noise.learn == "unit":
            raise ConfigError(
                "estimator.baseline: 'leave_one_out' is biased for unit scales within an orthogonal frame; use 'shared'"
            )
        minimum = 4 if e.antithetic else 2
        if min(per_site(e.copies), default=minimum) < minimum:
            raise ConfigError(
                f"estimator.copies: 'leave_one_out' needs two independent groups, at least {minimum} copies"
            )
    if e.name == "joint":
        if e.share != 1:
            raise ConfigError(
                "estimator.share: has no effect with 'joint', which draws the noise of all sites together; leave it out"
            )
        for key in ("copies", "passes"):
            if isinstance(getattr(e, key), Mapping):
                raise ConfigError(f"estimator.{key}: 'joint' varies all sites at once; give one number for all sites")
    if e.name != "conditional" and per_site(e.passes) != [1]:
        raise ConfigError(f"estimator.passes: {e.name!r} does not reuse the noise of a shared pass; only 1 is allowed")
    _check_redraw(e, noise)
    if e.feedback != "none":
        if e.name == "joint":
            raise ConfigError(
                f"estimator.feedback: {e.feedback!r} works only with 'conditional' and 'layerwise', not with 'joint'; "
                "leave it out"
            )
        if loss == "zero_one" and (e.name == "layerwise" or e.head in ("sampled", "derivative")):
            raise ConfigError(
                f"estimator.feedback: {e.feedback!r} needs the derivative of the loss, which 'zero_one' has with "
                "'conditional' and estimator.head 'expected' only"
            )
    _check_head(e, loss)


def _check_redraw(e: Estimator, noise: Noise) -> None:
    ways = e.redraw.values() if isinstance(e.redraw, Mapping) else [e.redraw]
    for way in UNIT_WISE:
        if way in ways and e.name != "conditional":
            raise ConfigError(
                f"estimator.redraw: {way!r} works only with 'conditional', not with {e.name!r}; leave it out"
            )
    if "levels" in ways and e.name == "joint":
        raise ConfigError("estimator.redraw: 'levels' works only with 'conditional' and 'layerwise', not with 'joint'")
    if "levels" in ways and e.baseline == "leave_one_out" and e.sampler == "orthogonal":
        raise ConfigError(
            "estimator.redraw: 'levels' is biased with 'leave_one_out' within an orthogonal frame; use baseline "
            "'shared' or sampler 'iid'"
        )
    if "column_space" not in ways:
        return
    if e.name == "joint":
        raise ConfigError(
            "estimator.redraw: 'column_space' works only with 'conditional' and 'layerwise', not with 'joint'; leave "
            "it out"
        )
    if noise.law != "gaussian":
        raise ConfigError(
            f"estimator.redraw: 'column_space' needs the gaussian law, because a component of {noise.law} noise is not "
            "independent of the rest; use 'copies' or 'auto'"
        )
    if noise.learn != "none":
        raise ConfigError(
            f"estimator.redraw: 'column_space' is not allowed with noise.learn={noise.learn}: the gradient of a scale "
            "needs the whole noise; use 'copies' or 'auto'"
        )


def _check_budget(e: Estimator) -> None:
    """Refuses `auto` without a budget, and a budget or `auto` that could not work."""
    if e.copies != "auto" and e.passes != "auto":
        for key in ("budget", "measure_every"):
            if (value := getattr(e, key)) != Estimator.model_fields[key].default:
                raise ConfigError(
                    f"estimator.{key}: {value:g} has no effect without estimator.copies 'auto'; leave it out"
                )
        return
    if e.copies != "auto":
        raise ConfigError("estimator.passes: 'auto' needs estimator.copies 'auto' and estimator.budget")
    if e.name != "conditional":
        raise ConfigError(f"estimator.copies: 'auto' works only with 'conditional', not with {e.name!r}; give a number")
    if e.budget is None:
        raise ConfigError("estimator.budget: is missing; 'auto' needs the number of forward passes per step")
    if e.feedback == "biased":
        raise ConfigError(
            "estimator.feedback: 'biased' is not allowed with estimator.copies 'auto', which looks at the variance "
            "alone; use 'control_variate'"
        )
    if e.share != 1:
        raise ConfigError(
            "estimator.share: is not allowed with estimator.copies 'auto', which measures the variance of all examples"
        )
    if e.sampler == "sobol":
        raise ConfigError(
            "estimator.copies: 'auto' does not know how the variance of a sobol set depends on K; use 'iid' or "
            "'orthogonal'"
        )
    if e.baseline == "leave_one_out":
        raise ConfigError(
            "estimator.baseline: 'leave_one_out' makes the directions of a block dependent, which estimator.copies "
            "'auto' does not allow for; use 'shared'"
        )


def _check_head(e: Estimator, loss: str | None) -> None:
    if e.head == "derivative" and loss == "zero_one":
        raise ConfigError(
            "estimator.head: 'derivative' is not allowed: 'zero_one' does not have a derivative; use 'expected'"
        )
    if e.head_draws == Estimator.model_fields["head_draws"].default:
        return
    if e.head not in ("derivative", "auto") or e.name == "joint":
        what = f"head {e.head!r}" if e.name != "joint" else "'joint', which draws the noise of all sites together"
        raise ConfigError(f"estimator.head_draws: has no effect with {what}; leave it out")
    if e.antithetic and e.head_draws % 2:
        raise ConfigError(f"estimator.head_draws: {e.head_draws} is odd, antithetic pairs need an even number")
