"""The configuration: a YAML file and dotted overrides become a frozen `Config`. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from glr_dist.config.data import AnyData, Augment, Data, OwnData
from glr_dist.config.diagnose import Diagnose
from glr_dist.config.estimator import Estimator
from glr_dist.config.execution import Execution
from glr_dist.config.files import dump, flat, overridden, read, suite_of_file
from glr_dist.config.messages import build
from glr_dist.config.model import AnyModel, Model, Normalize, OwnModel, ZooModel
from glr_dist.config.noise import InputNoise, Noise
from glr_dist.config.robustness import Robustness
from glr_dist.config.section import Count, Named, Positive, Section
from glr_dist.config.tracking import Tracking
from glr_dist.config.training import Adversarial, EarlyStopping, Optimizer, Penalty, Schedule, Training
from glr_dist.config.validation import can_compile, check_compile, check_estimator, per_site, resolve_sampler
from glr_dist.errors import ConfigError

__all__ = [
    "Adversarial",
    "AnyModel",
    "Augment",
    "Config",
    "Count",
    "Data",
    "Diagnose",
    "EarlyStopping",
    "Estimator",
    "Execution",
    "InputNoise",
    "Model",
    "Named",
    "Noise",
    "Normalize",
    "Optimizer",
    "OwnData",
    "OwnModel",
    "Penalty",
    "Positive",
    "Robustness",
    "Schedule",
    "Section",
    "Tracking",
    "Training",
    "ZooModel",
    "build",
    "can_compile",
    "check_compile",
    "check_estimator",
    "dump",
    "dump_config",
    "folder_of",
    "has_own_files",
    "flat",
    "load_config",
    "overridden",
    "per_site",
    "read",
    "resolve_sampler",
    "suite_of_file",
    "with_suites",
]


class Config(Section):
    """Configuration of a run."""

    seed: int = Field(0, ge=0, lt=2**63)
    data: AnyData = Data()
    model: AnyModel = Model()
    noise: Noise = Noise()
    estimator: Estimator = Estimator()
    training: Training = Training()
    execution: Execution = Execution()
    tracking: Tracking = Tracking()
    robustness: Robustness = Robustness()
    diagnose: Diagnose = Diagnose()
    code: str | None = Field(
        None, description="folder of modules and data files of your own; recorded by the run if it needs them"
    )

    @model_validator(mode="after")
    def _resolve(self) -> Config:
        sampler = resolve_sampler(self.estimator, self.noise)
        object.__setattr__(self, "estimator", self.estimator.model_copy(update={"sampler": sampler}))
        check_estimator(self.estimator, self.noise, self.training.loss)
        check_compile(self.execution.compile, self.estimator)
        if (last := max(self.noise.schedule, default=0)) >= self.training.epochs:
            raise ConfigError(
                f"noise.schedule: {last} is not before the end of the run (training.epochs={self.training.epochs})"
            )
        if self.noise.input is not None and self.noise.input.ramp >= self.training.epochs:
            raise ConfigError(
                f"noise.input.ramp: {self.noise.input.ramp} is not before the end of the run "
                f"(training.epochs={self.training.epochs})"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Loads a YAML file and applies `section.key=value` overrides.

    A configuration that names code or files of the user's own records its folder as `code`.

    Raises:
        ConfigError: the file is missing, not YAML, or invalid.
    """
    values = with_suites(overridden(read(path), overrides))
    config = build(Config, values)
    if config.code is None and has_own_files(config):
        config = config.model_copy(update={"code": folder_of(path)})
    return config


def with_suites(values: dict[str, Any]) -> dict[str, Any]:
    """Replaces the files of suites that the section `robustness` names by their content, in place; returns the values.

    A run keeps its suites itself, since it may continue in another folder or without the files.

    Raises:
        ConfigError: a file cannot be read.
    """
    section = values.get("robustness")
    for key in ("suite", "at_end"):
        if isinstance(section, dict) and isinstance(named := section.get(key), str) and Path(named).suffix:
            section[key] = suite_of_file(named)
    return values


def has_own_files(config: Config) -> bool:
    """True if a configuration names code or data files of the user's own."""
    names = (config.model.name, config.data.name, config.training.loss)
    return config.data.path is not None or any(":" in name for name in names)


def folder_of(path: str | Path) -> str:
    """Returns the absolute folder of a configuration file."""
    return str(Path(path).expanduser().absolute().parent)


def dump_config(config: Config) -> str:
    """Returns the resolved configuration with every default, as YAML that `load_config` reads back."""
    return dump(config.model_dump(mode="json"))
