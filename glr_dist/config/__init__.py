"""The configuration: one YAML file and dotted overrides -> one frozen `Config`. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field, model_validator

from glr_dist.config.combinations import check_estimator, per_site, resolve_sampler
from glr_dist.config.files import flat, overridden, read
from glr_dist.config.mistakes import build
from glr_dist.config.sections import (
    Count,
    Data,
    Diagnose,
    Estimator,
    Execution,
    Model,
    Named,
    Noise,
    Optimizer,
    Positive,
    Schedule,
    Section,
    Tracking,
    Training,
)
from glr_dist.errors import ConfigError

__all__ = [
    "Config",
    "Count",
    "Data",
    "Diagnose",
    "Estimator",
    "Execution",
    "Model",
    "Named",
    "Noise",
    "Optimizer",
    "Positive",
    "Schedule",
    "Section",
    "Tracking",
    "Training",
    "build",
    "check_estimator",
    "dump_config",
    "flat",
    "load_config",
    "overridden",
    "per_site",
    "read",
    "resolve_sampler",
]


class Config(Section):
    """Everything a run depends on."""

    seed: int = Field(0, ge=0, lt=2**63)
    data: Data = Data()
    model: Model = Model()
    noise: Noise = Noise()
    estimator: Estimator = Estimator()
    training: Training = Training()
    execution: Execution = Execution()
    tracking: Tracking = Tracking()
    diagnose: Diagnose = Diagnose()

    @model_validator(mode="after")
    def _resolve(self) -> Config:
        sampler = resolve_sampler(self.estimator, self.noise)
        object.__setattr__(self, "estimator", self.estimator.model_copy(update={"sampler": sampler}))
        check_estimator(self.estimator, self.noise, self.training.loss)
        if (last := max(self.noise.schedule, default=0)) >= self.training.epochs:
            raise ConfigError(f"noise.schedule: {last} leaves no epoch of training.epochs={self.training.epochs}")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file with `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing, no YAML, or holds a mistake.
    """
    return build(Config, overridden(read(path), overrides))


def dump_config(config: Config) -> str:
    """The resolved configuration with every default, as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
