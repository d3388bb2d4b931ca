"""Registries of search algorithms and trial schedulers: one row each, with its validation. Imports no torch.

A new algorithm needs a row here and a sampler in `study.py`, or a trial queue of its own in `trial_queue.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glr_dist.config import Config
from glr_dist.errors import ConfigError
from glr_dist.text import hint
from glr_dist.tuning.objectives import EVERY_EPOCH, training_metrics
from glr_dist.tuning.points import field_parts, grid_size
from glr_dist.tuning.ranges import Space

if TYPE_CHECKING:
    from glr_dist.tuning.search_config import Tune

MAX_TRIALS = 100_000
_MIN_POPULATION = 4


@dataclass(frozen=True)
class Algorithm:
    """A way to choose the points of a search.

    Attributes:
        check: validates the section `tune` for this algorithm.
        check_base: validates the configuration that the search starts from.
        grid: tries every combination of the listed values.
        population: trains trials in intervals and replaces the worst ones.
    """

    check: Callable[[Tune], None]
    check_base: Callable[[Tune, Config], None] = lambda tune, base: None
    grid: bool = False
    population: bool = False


@dataclass(frozen=True)
class Scheduler:
    """A way to stop trials early.

    Attributes:
        check: validates the section `tune` for this scheduler.
        check_base: validates the configuration that the search starts from.
    """

    check: Callable[[Tune], None] = lambda tune: None
    check_base: Callable[[Tune, Config], None] = lambda tune, base: None


def check_algorithm(name: str) -> str:
    """Returns the name of an algorithm.

    Raises:
        ConfigError: it is not registered.
    """
    return _registered("algorithm", name, ALGORITHMS)


def check_scheduler(name: str) -> str:
    """Returns the name of a scheduler.

    Raises:
        ConfigError: it is not registered.
    """
    return _registered("scheduler", name, SCHEDULERS)


def _registered(key: str, name: str, known: Mapping[str, object]) -> str:
    if name not in known:
        raise ConfigError(f"tune.{key}: {name!r} is not known; {hint(name, known)}")
    return name


# ------------------------------------------------------------ algorithms


def _check_independent(tune: Tune) -> None:
    for field, allowed in tune.space.items():
        if allowed.grid is not None:
            raise ConfigError(
                f"tune.space.{field}: 'grid' needs the algorithm 'grid', not '{tune.algorithm}'; use 'choice'"
            )
    _check_no_interval(tune)


def _check_grid(tune: Tune) -> None:
    for field, allowed in tune.space.items():
        if allowed.listed is None:
            raise ConfigError(
                f"tune.space.{field}: the algorithm 'grid' needs a list of values, not '{allowed.kind}'; use 'grid'"
            )
    if tune.scheduler != "none":
        raise ConfigError(f"tune.scheduler: '{tune.scheduler}' would leave gaps in a grid; use 'none'")
    if tune.trials is not None:
        raise ConfigError(
            f"tune.trials: {tune.trials} cannot be set for a grid, which has {grid_size(tune.space)} points; remove it"
        )
    if (points := grid_size(tune.space)) > MAX_TRIALS:
        raise ConfigError(f"tune.space: a grid of {points} points is too large; the maximum is {MAX_TRIALS}")
    _check_no_interval(tune)


def _check_no_interval(tune: Tune) -> None:
    if tune.interval != 1:
        raise ConfigError(f"tune.interval: {tune.interval} needs the algorithm 'pbt', not '{tune.algorithm}'")


def _check_population(tune: Tune) -> None:
    _check_scales(tune.space)
    if tune.scheduler != "none":
        raise ConfigError(f"tune.scheduler: '{tune.scheduler}' cannot be used with 'pbt', which stops trials itself")
    if tune.number < _MIN_POPULATION:
        raise ConfigError(
            f"tune.trials: {tune.number} is too small a population; 'pbt' needs at least {_MIN_POPULATION}"
        )


def _check_scales(space: Space) -> None:
    for field, allowed in space.items():
        if allowed.grid is not None:
            raise ConfigError(f"tune.space.{field}: 'grid' needs the algorithm 'grid', not 'pbt'; use 'loguniform'")
        if field_parts(field)[:2] != ("noise", "scale"):
            raise ConfigError(f"tune.space.{field}: 'pbt' searches only a schedule of noise.scale; use 'optuna'")
        if allowed.kind not in ("loguniform", "uniform"):
            raise ConfigError(f"tune.space.{field}: '{allowed.kind}' cannot be perturbed by 'pbt'; use 'loguniform'")


def _check_population_base(tune: Tune, base: Config) -> None:
    if tune.interval >= base.training.epochs:
        raise ConfigError(
            f"tune.interval: {tune.interval} leaves pbt no selection in {base.training.epochs} training.epochs"
        )
    trained, every = training_metrics(base.robustness), base.robustness.every
    for name in tune.objectives:
        if name in trained and every is not None and tune.interval % every:
            raise ConfigError(
                f"tune.interval: {tune.interval} is not a multiple of robustness.every={every}, after which "
                f"'{name}' is measured"
            )
    noise = base.noise
    wrong = {"law": noise.law == "none", "learn": noise.learn != "none", "schedule": bool(noise.schedule)}
    for key in (key for key in wrong if wrong[key]):
        raise ConfigError(f"noise.{key}: {getattr(noise, key)!r} cannot be used with 'pbt', which finds a schedule")


# ------------------------------------------------------------ schedulers


def _check_no_grace(tune: Tune) -> None:
    if tune.grace != 1:
        raise ConfigError(f"tune.grace: {tune.grace} needs the scheduler 'asha', not '{tune.scheduler}'")


def _check_asha(tune: Tune) -> None:
    if tune.watched is None:
        known = ", ".join(EVERY_EPOCH)
        raise ConfigError(
            f"tune.scheduler: 'asha' needs an objective that epochs report: {known}, or one of robustness.every"
        )


def _check_asha_base(tune: Tune, base: Config) -> None:
    if "training.epochs" in tune.space:
        raise ConfigError("tune.space.training.epochs: 'asha' compares trials of equal length; use scheduler 'none'")
    if tune.grace >= base.training.epochs:
        raise ConfigError(
            f"tune.grace: {tune.grace} leaves asha nothing to stop in {base.training.epochs} training.epochs"
        )


ALGORITHMS: dict[str, Algorithm] = {
    "random": Algorithm(_check_independent),
    "grid": Algorithm(_check_grid, grid=True),
    "optuna": Algorithm(_check_independent),
    "pbt": Algorithm(_check_population, _check_population_base, population=True),
}
SCHEDULERS: dict[str, Scheduler] = {
    "asha": Scheduler(_check_asha, _check_asha_base),
    "none": Scheduler(_check_no_grace),
}
