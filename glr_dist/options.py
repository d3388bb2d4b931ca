"""The arguments of `GLR`: names that people come with, combinations that are refused, and the executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glr_dist import config
from glr_dist.errors import ConfigError
from glr_dist.execution.executor import Executor
from glr_dist.execution.inline import Inline
from glr_dist.noise import LAWS, Noise
from glr_dist.text import hint

# Names that users of other packages come with.
_SYNONYMS = {
    "copies": "num_samples samples n_samples num_copies population population_size popsize num_directions",
    "passes": "num_passes forward_passes num_forwards",
    "noise": "sigma std stddev noise_std scale noise_scale stdev law distribution",
    "antithetic": "mirrored mirrored_sampling symmetric",
    "seed": "random_state generator rng",
    "actors": "workers num_workers num_actors n_jobs",
    "sites": "layers modules site_types",
    "baseline": "control_variate",
    "head": "exact_head",
    "example_block": "batch_size chunk_size",
    "estimator": "method gradient",
}


def unknown_option(name: str, known: Sequence[str]) -> str:
    """Returns the message for an option that `GLR` does not take; it takes the known ones."""
    for option, synonyms in _SYNONYMS.items():
        if name.lower() in synonyms.split():
            return f"{name}: is not an option of GLR; did you mean '{option}'?"
    return f"{name}: is not an option of GLR; {hint(name, known)}"


def checked_options(estimator: config.Estimator, noise: Noise | None) -> config.Estimator:
    """Resolves the sampler, and refuses options that would bias the estimate with this noise."""
    traits: Any = {"law": noise.law, "learn": noise.learn} if noise else {"law": "none"}
    law = config.Noise.model_construct(**traits)  # not validated: the configuration does not know custom laws
    options = estimator.model_copy(update={"sampler": config.resolve_sampler(estimator, law)})
    config.check_estimator(options, law)
    if noise is None or options.name == "pathwise" or type(noise) in LAWS.values():
        return options
    if options.antithetic and not noise.symmetric:
        raise ConfigError(
            f"estimator.antithetic: pairs (ε, -ε) need a law that is symmetric about 0, s(-ε) = -s(ε), and "
            f"{noise.law} is not; pass antithetic=False"
        )
    if options.sampler == "sobol" and not noise.has_quantile:
        raise ConfigError(f"estimator.sampler: 'sobol' needs a law with quantile(u), {noise.law} has none; use 'iid'")
    return options


def compiles(compile: str, options: config.Estimator) -> bool:
    """Returns whether an argument `compile` asks for compiled steps."""
    if compile not in ("none", "step"):
        raise ConfigError(f"compile: {compile!r} is not allowed: 'none' or 'step'")
    config.check_compile(compile, options, "compile")
    return compile == "step"


def executor_of(executor: Executor | str | None, actors: int | None) -> Executor:
    """Returns the executor that the arguments `executor` and `actors` name."""
    if actors is not None and executor not in (None, "layers"):
        raise ConfigError("actors: cannot stand beside an executor of another kind; leave one of them out")
    if executor == "layers" or actors is not None:
        from glr_dist.execution.layers import Layers  # importing Ray takes a second

        return Layers(actors)
    if executor is None or executor == "inline":
        return Inline()
    if isinstance(executor, Executor):
        return executor
    known = "'inline', 'layers', or an executor such as glr_dist.Layers(8)"
    raise ConfigError(f"executor: {executor!r} is not allowed: {known}")
