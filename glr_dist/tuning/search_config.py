"""The file of a search: an ordinary configuration with one more section, `tune`. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from glr_dist.config import (
    Config,
    Count,
    Model,
    Positive,
    Section,
    build,
    dump,
    folder_of,
    has_own_files,
    overridden,
    read,
    with_suites,
)
from glr_dist.errors import ConfigError
from glr_dist.imported import is_import_path
from glr_dist.robustness.suite import Corruptions, Suite, SuiteName
from glr_dist.runs import deciding
from glr_dist.text import one_line, shown
from glr_dist.tuning.algorithms import ALGORITHMS, MAX_TRIALS, SCHEDULERS, check_algorithm, check_scheduler
from glr_dist.tuning.objectives import check_objectives, suite_metrics
from glr_dist.tuning.points import edge_points, field_parts, grid_size, with_point
from glr_dist.tuning.ranges import Range, parse_space

_TRIALS = 16
_MAX_PROCESSES = 10_000
_MAX_CPUS = 1_000
_MAX_SEEDS = 1_000
_NO_DERIVATIVE = ("threshold", "sign", "staircase")  # activations through which no white-box attack has a gradient
# Settings that may change when a search is resumed, because they change no trial (`trials` does in a population).
SEARCH_FILE = "tune.yaml"  # the search, in its folder
_MAY_DIFFER = ("trials", "concurrent", "cpus_per_trial", "actors_per_trial")


class Robustness(Suite):
    """The suite that measures robust objectives: on the validation images, without corruptions by default."""

    name: SuiteName = "tune"
    split: Literal["validation"] = "validation"
    corruptions: Corruptions = Corruptions(names=())


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Tune(Section):
    """The section `tune`: search space, objectives, algorithm and resources."""

    space: Annotated[dict[str, Range], BeforeValidator(parse_space)] = Field(
        description="fields and their ranges, e.g. noise.scale: {loguniform: [0.05, 3]}"
    )
    objectives: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = Field(
        ("validation/accuracy",), description="metrics on the validation images; trials are ranked by the first one"
    )
    robustness: Robustness | None = Field(
        None, description="attacks and corruptions at the end of each trial, or of each interval of a population"
    )
    algorithm: Annotated[str, AfterValidator(check_algorithm)] = Field(
        "optuna", description="pbt: population-based training of a schedule of noise.scale"
    )
    interval: Count = Field(1, description="epochs between two selections of pbt")
    scheduler: Annotated[str, AfterValidator(check_scheduler)] = Field(
        "none", description="asha: stops trials that fall behind"
    )
    grace: Count = Field(1, description="epochs before asha may stop a trial")
    trials: Annotated[Count, Field(le=MAX_TRIALS)] | None = Field(
        None, description=f"number of trials (default {_TRIALS}; 'grid': all points); of 'pbt', size of the population"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the search algorithm; trials train with the run's seed")
    seeds: Annotated[Count, Field(le=_MAX_SEEDS)] = Field(
        1, description="runs of each trial, from the run's seed upwards; trials are compared by their mean metrics"
    )
    concurrent: Annotated[Count, Field(le=_MAX_PROCESSES)] | None = Field(
        None, description="maximum number of concurrent trials (default: as many as fit)"
    )
    cpus_per_trial: Annotated[Positive, Field(le=_MAX_CPUS)] = Field(
        1, description="CPUs and threads of a trial that runs in one process"
    )
    gpus_per_trial: float = Field(
        0, ge=0, le=1, allow_inf_nan=False, description="GPU, or share of one, of a trial in one process; 0: on the CPU"
    )
    actors_per_trial: int = Field(
        0,
        ge=0,
        le=_MAX_PROCESSES,
        description="Ray actors (one CPU each) that compute a trial's work items; 0: one process per trial",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Tune:
        for field in self.space:
            if whole := next((other for other in self.space if field.startswith(f"{other}.")), None):
                raise ConfigError(f"tune.space.{field}: {whole} is searched too and contains it; remove one of them")
        ALGORITHMS[self.algorithm].check(self)
        if self.actors_per_trial and self.cpus_per_trial != 1:
            raise ConfigError(
                f"tune.cpus_per_trial: {self.cpus_per_trial:g} cannot be set with actors_per_trial; an actor has 1 CPU"
            )
        if self.actors_per_trial and self.gpus_per_trial:
            raise ConfigError(
                f"tune.gpus_per_trial: {self.gpus_per_trial:g} cannot be set with actors_per_trial, which use CPUs"
            )
        if self.seeds > 1:
            self._check_seeds()
        SCHEDULERS[self.scheduler].check(self)
        return self

    def _check_seeds(self) -> None:
        if "seed" in self.space:
            raise ConfigError(f"tune.seeds: {self.seeds} cannot be set, the seed is searched in tune.space; remove one")
        if ALGORITHMS[self.algorithm].population:
            raise ConfigError(f"tune.seeds: {self.seeds} cannot be used with '{self.algorithm}'; use another algorithm")
        if self.scheduler != "none":
            raise ConfigError(
                f"tune.seeds: {self.seeds} cannot be used with '{self.scheduler}', which would stop a trial after an "
                "epoch of its first seed; use scheduler 'none'"
            )

    @property
    def watched(self) -> str | None:
        """The first objective that epochs report, by which asha compares trials."""
        at_end = [] if self.robustness is None else suite_metrics(self.robustness)
        return next((name for name in self.objectives if name not in at_end), None)

    @property
    def number(self) -> int:
        """Number of trials; in a population, number of concurrent members."""
        return grid_size(self.space) if ALGORITHMS[self.algorithm].grid else self.trials or _TRIALS


@dataclass(frozen=True)
class Search:
    """A validated search file.

    Attributes:
        values: the sections of the file except `tune`, as given.
        base: the configuration that the search starts from.
        tune: the section `tune`.
    """

    values: Mapping[str, Any]
    base: Config
    tune: Tune

    def config_at(self, point: Mapping[str, Any]) -> Config:
        """Returns the configuration at a point of the space.

        Raises:
            ConfigError: the configuration is invalid.
        """
        return build(Config, with_point(self.values, point))

    def with_weights(self, path: str, digest: str) -> Search:
        """Returns the search with the absolute path and the digest of the weights that its trials begin with."""
        model = {**self.values.get("model", {}), "weights": path, "weights_sha256": digest}
        values = {**self.values, "model": model}
        return Search(values, build(Config, values), self.tune)

    def scales(self, point: Mapping[str, Any], field: str, epochs: int) -> list[float]:
        """Returns the noise scale in each of the first epochs at a point of the space.

        Args:
            point: values by dotted field, including `noise.schedule` if it has one.
            field: `noise.scale`, or `noise.scale.PATTERN`.
            epochs: number of epochs.
        """
        noise, pattern = self.config_at(point).noise, field_parts(field)[2]
        found = [noise.scale_after(epoch) for epoch in range(epochs)]
        return [scale[pattern] if isinstance(scale, Mapping) else scale for scale in found]

    def parameters(self) -> dict[str, Any]:
        """Returns the search and its base configuration as nested mappings, for a tracking server."""
        tune = {**self.tune.model_dump(mode="json", exclude_none=True), "space": self._space()}
        return {**self.base.model_dump(mode="json", exclude={"execution", "tracking", "diagnose"}), "tune": tune}

    def dump(self) -> str:
        """Returns the search as YAML that `load_search` reads back, without credentials of a tracking server."""
        values = dict(self.values)
        if "tracking" in values:
            values["tracking"] = self.base.tracking.model_dump(mode="json", exclude_unset=True)
        tune = self.tune.model_dump(mode="json", exclude_none=True)
        return dump({**values, "tune": tune})

    def check_same(self, path: Path) -> None:
        """Checks that a stored search is this one, so that it can be resumed.

        Raises:
            ConfigError: names the first setting that differs.
        """
        try:
            before = load_search(path)._fixed()
        except ConfigError as error:
            raise ConfigError(f"{path}: is damaged or was edited ({one_line(error)})") from None
        now = self._fixed()
        for key in now:
            if before.get(key) != now[key]:
                raise ConfigError(
                    f"{key}: the search in {path.parent} has {shown(before.get(key))}, not {shown(now[key])}; "
                    "start another search without --resume"
                )

    def _space(self) -> dict[str, str]:
        return {field: allowed.described() for field, allowed in self.tune.space.items()}

    def _fixed(self) -> dict[str, Any]:
        """Returns the settings that must not change when the search is resumed, by dotted name."""
        tune = self.tune.model_dump(mode="json", exclude={*_MAY_DIFFER}) | {"space": self._space()}
        if ALGORITHMS[self.tune.algorithm].population:
            tune["trials"] = self.tune.number  # the selections depend on it
        robustness = self.base.robustness.model_dump(mode="json", exclude={"at_end"})
        evaluated = {f"robustness.{key}": value for key, value in robustness.items()}
        return deciding(self.base) | evaluated | {f"tune.{key}": value for key, value in tune.items()}


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """Loads a search from a YAML file with `section.key=value` overrides, and validates every edge of its space.

    Raises:
        ConfigError: the file is missing, is not YAML, has no section `tune`, or is invalid.
    """
    values = with_suites(overridden(read(path), overrides))
    tune = values.pop("tune", None)
    if not isinstance(tune, Mapping):
        raise ConfigError(
            f"{path}: needs a section 'tune' with a space, e.g. tune: {{space: {{seed: {{choice: [0, 1]}}}}}}"
        )
    base = build(Config, values)
    if base.code is None and (has_own_files(base) or _searches_own_code(tune)):
        values["code"] = folder_of(path)
        base = build(Config, values)
    if base.execution.kind != "inline":
        raise ConfigError(
            f"execution.kind: '{base.execution.kind}' cannot be used in a search; set tune.actors_per_trial instead"
        )
    search = Search(values, base, build(Tune, tune, "tune."))
    check_objectives(search.tune.objectives, search.tune.robustness, base.robustness)
    ALGORITHMS[search.tune.algorithm].check_base(search.tune, base)
    SCHEDULERS[search.tune.scheduler].check_base(search.tune, base)
    _check_edges(search)
    return search


def _searches_own_code(tune: Mapping[str, Any]) -> bool:
    """True if the space of a search holds import paths."""
    space = tune.get("space")
    return isinstance(space, Mapping) and any(
        is_import_path(value)
        for values in space.values()
        if isinstance(values, Mapping)
        for value in values.get("choice") or ()
    )


def _check_edges(search: Search) -> None:
    white_box = [name for name in search.tune.objectives if name.startswith("robust/") and "white_box" in name]
    for field, value, point in edge_points(search.tune.space):
        if field_parts(field)[0] in ("execution", "tracking", "robustness", "diagnose"):
            raise ConfigError(f"tune.space.{field}: changes no result; search another field")
        try:
            config = search.config_at(point)
        except ConfigError as error:
            raise ConfigError(f"tune.space.{field}: {shown(value)} is not possible ({one_line(error)})") from None
        model = config.model
        activation = model.activation if isinstance(model, Model) else model.arguments.get("activation")
        if white_box and activation in _NO_DERIVATIVE:
            raise ConfigError(
                f"tune.objectives: '{white_box[0]}' cannot be measured on {activation} units, which have "
                "no derivative; use the threat transfer or adaptive, or the attack square"
            )
