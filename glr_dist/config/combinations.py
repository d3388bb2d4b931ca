"""Combinations of settings that would be biased, or mean nothing."""

from __future__ import annotations

from collections.abc import Mapping

from glr_dist.config.sections import Estimator, Noise
from glr_dist.errors import ConfigError


def resolve_sampler(estimator: Estimator, noise: Noise) -> str:
    """The sampler that `auto` stands for."""
    if estimator.sampler != "auto":
        return estimator.sampler
    return "orthogonal" if noise.law == "gaussian" and estimator.name != "pathwise" else "iid"


def per_site(value: int | Mapping[str, int]) -> list[int]:
    """The values that a number, or a mapping of site patterns to numbers, can give."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


def check_estimator(estimator: Estimator, noise: Noise, loss: str | None = None) -> None:
    """Refuses combinations that would be biased or mean nothing.

    Raises:
        ConfigError: with the reason.
    """
    e, law = estimator, noise.law
    if e.name == "pathwise":
        default = Estimator()
        for key in ("copies", "antithetic", "baseline", "exact_head"):
            if getattr(e, key) != getattr(default, key):
                raise ConfigError(
                    f"estimator.{key}: has no meaning with 'pathwise', which redraws nothing; leave it out"
                )
        if e.sampler not in ("auto", "iid"):
            raise ConfigError(f"estimator.sampler: {e.sampler!r} has no meaning with 'pathwise', which redraws nothing")
        if isinstance(e.passes, Mapping):
            raise ConfigError("estimator.passes: 'pathwise' runs whole passes; give one number for all sites")
        if law == "none" and (e.passes != 1 or noise.learn != "none"):
            raise ConfigError("noise.law: 'none' leaves one pass and no scale to learn: passes 1 and learn 'none'")
        if loss == "zero_one":
            raise ConfigError("training.loss: 'zero_one' has no derivative for 'pathwise'; use another estimator")
        return
    if law == "none":
        raise ConfigError(f"noise.law: 'none' is for the estimator 'pathwise' only; {e.name!r} needs noise to estimate")
    if e.antithetic and any(copies % 2 for copies in per_site(e.copies)):
        odd = next(copies for copies in per_site(e.copies) if copies % 2)
        raise ConfigError(f"estimator.copies: {odd} is odd, antithetic pairs need an even number")
    if e.sampler == "orthogonal" and law != "gaussian":
        raise ConfigError(
            f"estimator.sampler: 'orthogonal' needs the gaussian law, a rotation of {law} noise is not {law}; use 'iid'"
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
        least = 4 if e.antithetic else 2
        if min(per_site(e.copies)) < least:
            raise ConfigError(
                f"estimator.copies: 'leave_one_out' needs two independent groups, at least {least} copies"
            )
    if e.name == "joint":
        for key in ("copies", "passes"):
            if isinstance(getattr(e, key), Mapping):
                raise ConfigError(f"estimator.{key}: 'joint' varies all sites at once; give one number for all sites")
    if e.name != "conditional" and per_site(e.passes) != [1]:
        raise ConfigError(f"estimator.passes: {e.name!r} keeps no noise of a shared pass; only 1 is allowed")
    if e.exact_head and loss == "zero_one":
        raise ConfigError("estimator.exact_head: 'zero_one' has no derivative; use 'cross_entropy' or turn it off")
