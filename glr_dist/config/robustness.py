"""The section `robustness`: evaluations while a run trains, and of the finished run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from glr_dist.config.section import Count, Section
from glr_dist.errors import ConfigError


class Robustness(Section):
    """Evaluations of robustness while a run trains, and of the finished run. They change no bit of the training."""

    every: Count | None = Field(
        None, description="epochs between two evaluations while the run trains; the last epoch is evaluated too"
    )
    suite: str | dict[str, Any] = Field(
        "quick", description="attacks and corruptions: a suite, a file, or its settings"
    )
    split: Literal["validation", "test"] = Field("validation", description="images of the evaluations while it trains")
    examples: Count | None = Field(None, description="evaluate the first N images (default: as the suite says)")
    certify: dict[str, Any] | None = Field(
        None, description="certificates too: settings of glr-dist certify, as in {examples: 100, n: 1000}"
    )
    at_end: str | dict[str, Any] | None = Field(
        None, description="suite that evaluates the finished run, as glr-dist evaluate --suite"
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Robustness:
        for key in ("suite", "split", "examples", "certify"):
            if self.every is None and getattr(self, key) != type(self).model_fields[key].default:
                raise ConfigError(f"robustness.{key}: has no effect without robustness.every; set it, as in every: 5")
        return self
