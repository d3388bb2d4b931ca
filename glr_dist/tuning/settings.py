"""The file of a search: an ordinary configuration with one more section, `tune`. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from glr_dist import config
from glr_dist.config import Config, Count, Positive, Section
from glr_dist.errors import ConfigError
from glr_dist.robustness.suite import Corruptions, Suite
from glr_dist.tuning.objectives import EVERY_EPOCH, check
from glr_dist.tuning.space import Range, edges, grid_of, parts, placed, ranges_of

_TRIALS = 16
_LEAST = 4  # trials of a population
_NO_DERIVATIVE = ("threshold", "sign", "staircase")  # units that a white-box attack finds no gradient of
# What may change when a search is resumed: it changes no trial, but for the number of those of a population.
_MAY_DIFFER = ("trials", "concurrent", "cpus_per_trial", "actors_per_trial")


class Robustness(Suite):
    """The suite that robust objectives come from: on the validation images, with no corruption unless asked for."""

    split: Literal["validation"] = "validation"
    corruptions: Corruptions = Corruptions(names=())


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Tune(Section):
    """What is searched, how, and for what."""

    space: Annotated[dict[str, Range], BeforeValidator(ranges_of)] = Field(
        description="fields and their ranges, as in noise.scale: {loguniform: [0.05, 3]}"
    )
    objectives: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = Field(
        ("validation/accuracy",), description="what is best, on the validation images; the first one orders the trials"
    )
    robustness: Robustness | None = Field(
        None, description="attacks and corruptions at the end of each trial, or of each turn of a population"
    )
    algorithm: Literal["random", "grid", "optuna", "pbt"] = Field(
        "optuna", description="pbt: a population that finds a schedule of noise.scale while it trains"
    )
    interval: Count = Field(1, description="epochs between two selections of pbt")
    scheduler: Literal["asha", "none"] = Field("none", description="asha: stops trials that fall behind")
    grace: Count = Field(1, description="epochs before asha may stop a trial")
    trials: Count | None = Field(
        None, description=f"how many; {_TRIALS} by default; of 'grid', all points; of 'pbt', at the same time"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="names the points that are tried; trials train with their own")
    concurrent: Count | None = Field(None, description="the most trials at a time; as many as fit by default")
    cpus_per_trial: Positive = Field(1, description="CPUs of a trial in one process, and its threads")
    actors_per_trial: int = Field(
        0, ge=0, description="Ray actors of one CPU each that compute a trial's work items; 0: one process a trial"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Tune:
        for field, allowed in self.space.items():
            if whole := next((other for other in self.space if field.startswith(f"{other}.")), None):
                raise ConfigError(f"tune.space.{field}: is a part of {whole}, which the space has too; leave one out")
            if self.algorithm == "grid" and allowed.listed is None:
                raise ConfigError(f"tune.space.{field}: '{allowed.kind}' is no list of points for 'grid'; list them")
            if self.algorithm != "grid" and allowed.grid is not None:
                raise ConfigError(
                    f"tune.space.{field}: 'grid' is for the algorithm 'grid', not '{self.algorithm}'; use 'choice'"
                )
        if self.algorithm == "grid":
            if self.scheduler != "none":
                raise ConfigError(f"tune.scheduler: '{self.scheduler}' leaves a grid with gaps; use 'none'")
            if self.trials is not None:
                points = len(grid_of(self.space))
                raise ConfigError(
                    f"tune.trials: {self.trials} has no meaning: the grid has {points} points; leave it out"
                )
        if self.algorithm == "pbt":
            self._check_population()
        elif self.interval != 1:
            raise ConfigError(f"tune.interval: {self.interval} is for the algorithm 'pbt', not '{self.algorithm}'")
        if self.actors_per_trial and self.cpus_per_trial != 1:
            raise ConfigError(
                f"tune.cpus_per_trial: {self.cpus_per_trial:g} has no meaning with actors_per_trial, which take 1 each"
            )
        if self.scheduler != "asha" and self.grace != 1:
            raise ConfigError(f"tune.grace: {self.grace} is for the scheduler 'asha', not '{self.scheduler}'")
        check(self.objectives, self.robustness)
        if self.scheduler == "asha" and self.watched is None:
            known = " or ".join(EVERY_EPOCH)
            raise ConfigError(f"tune.scheduler: 'asha' needs an objective that each epoch has: {known}")
        return self

    def _check_population(self) -> None:
        for field, allowed in self.space.items():
            if parts(field)[:2] != ("noise", "scale"):
                raise ConfigError(f"tune.space.{field}: 'pbt' searches a schedule of noise.scale alone; use 'optuna'")
            if allowed.kind not in ("loguniform", "uniform"):
                raise ConfigError(f"tune.space.{field}: '{allowed.kind}' cannot be changed a little; use 'loguniform'")
        if self.scheduler != "none":
            raise ConfigError(
                f"tune.scheduler: '{self.scheduler}' has no meaning with 'pbt', which stops trials itself"
            )
        if self.number < _LEAST:
            raise ConfigError(f"tune.trials: {self.number} is no population for 'pbt'; at least {_LEAST}")

    @property
    def watched(self) -> str | None:
        """The first objective that each epoch has: what asha looks at."""
        return next((name for name in self.objectives if name in EVERY_EPOCH), None)

    @property
    def number(self) -> int:
        """How many trials there are."""
        return len(grid_of(self.space)) if self.algorithm == "grid" else self.trials or _TRIALS


@dataclass(frozen=True)
class Search:
    """A search as its file says it.

    Attributes:
        values: the sections of the file but `tune`, as they were given.
        base: the configuration that they are.
        tune: what is searched.
    """

    values: Mapping[str, Any]
    base: Config
    tune: Tune

    def settings(self, point: Mapping[str, Any]) -> Config:
        """The configuration at a point of the space.

        Raises:
            ConfigError: it is not possible.
        """
        return config.build(Config, placed(self.values, point))

    def scales(self, point: Mapping[str, Any], field: str, epochs: int) -> list[float]:
        """The scale of each of the first epochs at a point of the space.

        Args:
            point: values by dotted field, `noise.schedule` among them where it has one.
            field: `noise.scale`, or `noise.scale.PATTERN`.
            epochs: how many.
        """
        noise, pattern = self.settings(point).noise, parts(field)[2]
        found = [noise.scale_after(epoch) for epoch in range(epochs)]
        return [scale[pattern] if isinstance(scale, Mapping) else scale for scale in found]

    def parameters(self) -> dict[str, Any]:
        """The whole search, and the configuration that it starts from, as nested mappings for a tracking server."""
        tune = {**self.tune.model_dump(mode="json", exclude_none=True), "space": self._space()}
        return {**self.base.model_dump(mode="json", exclude={"execution", "tracking", "diagnose"}), "tune": tune}

    def dump(self) -> str:
        """The file of the search, but for what differs from place to place, as YAML that `load` reads back."""
        values = {key: value for key, value in self.values.items() if key != "tracking"}
        tune = self.tune.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump({**values, "tune": tune}, sort_keys=False, allow_unicode=True)

    def check_same(self, path: Path) -> None:
        """Refuses to continue the search of a file that is another one.

        Raises:
            ConfigError: names the first setting that differs.
        """
        before, now = load(path)._fixed(), self._fixed()
        for key in now:
            if before.get(key) != now[key]:
                raise ConfigError(
                    f"{key}: the search in {path.parent} has {before.get(key)!r}, not {now[key]!r}; "
                    "leave out --resume to begin another one"
                )

    def _space(self) -> dict[str, str]:
        return {field: allowed.described() for field, allowed in self.tune.space.items()}

    def _fixed(self) -> dict[str, Any]:
        base = self.base.model_dump(mode="json", exclude={"execution", "tracking", "diagnose"})
        tune = self.tune.model_dump(mode="json", exclude={*_MAY_DIFFER}) | {"space": self._space()}
        if self.tune.algorithm == "pbt":
            tune["trials"] = self.tune.number  # who gives way to whom depends on it
        fixed = {"seed": base.pop("seed")}
        fixed |= {f"{section}.{key}": value for section in base for key, value in base[section].items()}
        fixed |= {f"tune.{key}": value for key, value in tune.items()}
        return {key: value for key, value in fixed.items() if key not in ("data.root", "data.download")}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """The search of a YAML file with `section.key=value` overrides; each edge of its space is a right configuration.

    Raises:
        ConfigError: the file is missing, no YAML, has no section `tune`, or holds a mistake.
    """
    values = config.overridden(config.read(path), overrides)
    tune = values.pop("tune", None)
    if not isinstance(tune, Mapping):
        raise ConfigError(
            f"{path}: has no section 'tune' with a space, e.g. tune: {{space: {{seed: {{choice: [0, 1]}}}}}}"
        )
    base = config.build(Config, values)
    if base.execution.kind != "inline":
        raise ConfigError(
            f"execution.kind: '{base.execution.kind}' has no meaning here; tune.actors_per_trial gives trials actors"
        )
    search = Search(values, base, config.build(Tune, tune, "tune."))
    _check_base(search)
    blind = [name for name in search.tune.objectives if name.startswith("robust/white_box/")]
    for field, value, point in edges(search.tune.space):
        if parts(field)[0] in ("execution", "tracking", "diagnose"):
            raise ConfigError(f"tune.space.{field}: changes no result; search another field")
        try:
            settings = search.settings(point)
        except ConfigError as error:
            raise ConfigError(f"tune.space.{field}: {value!r} is not possible ({error})") from None
        if blind and settings.model.activation in _NO_DERIVATIVE:
            raise ConfigError(
                f"tune.objectives: '{blind[0]}' cannot be measured on {settings.model.activation} units, which have no "
                "derivative; use the threat transfer or adaptive, or the attack square"
            )
    return search


def _check_base(search: Search) -> None:
    tune, epochs = search.tune, search.base.training.epochs
    if tune.algorithm == "pbt":
        if tune.interval >= epochs:
            raise ConfigError(f"tune.interval: {tune.interval} leaves pbt no selection in {epochs} training.epochs")
        noise = search.base.noise
        wrong = {"law": noise.law == "none", "learn": noise.learn != "none", "schedule": noise.schedule}
        for key in (key for key in wrong if wrong[key]):
            raise ConfigError(f"noise.{key}: {getattr(noise, key)!r} has no meaning with 'pbt', which makes a schedule")
    if tune.scheduler == "asha":
        if "training.epochs" in tune.space:
            raise ConfigError("tune.space.training.epochs: 'asha' compares trials of one length; use scheduler 'none'")
        if tune.grace >= epochs:
            raise ConfigError(f"tune.grace: {tune.grace} leaves asha nothing to stop in {epochs} training.epochs")
