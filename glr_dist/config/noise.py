"""The section `noise`: its law and scales, and where it enters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from glr_dist.config.section import Count, Positive, Scale, Section, one_of
from glr_dist.errors import ConfigError
from glr_dist.registry import LAWS

SITES = ("Linear", "Conv2d")  # default of noise.sites


class InputNoise(Section):
    """Gaussian noise on the inputs of training; predictions are made without it."""

    scale: Positive = Field(description="σ, in units of the input: pixel values in [0, 1]")
    ramp: int = Field(0, ge=0, le=10**9, description="finished epochs after which σ has grown from 0 to the scale")


class Noise(Section):
    """The noise, and the modules ("sites") that receive it."""

    law: Annotated[str, one_of(LAWS, ["none"])] = "gaussian"
    scale: Scale = Field(1.0, description="σ, or a mapping of site-name patterns to σ")
    schedule: dict[Count, Scale] = Field({}, description="noise scale from the given number of finished epochs on")
    learn: Literal["none", "site", "unit"] = Field("none", description="learn log σ per site or per unit")
    floor: Positive = Field(1e-3, description="lower bound of the learned σ")
    sites: tuple[str, ...] = Field(
        SITES,
        min_length=1,
        description="site types, classes of torch.nn; the network must have each, except those of the default",
    )
    names: tuple[str, ...] = Field(("*",), min_length=1, description="site-name patterns; each must match a site")
    weights: tuple[str, ...] = Field(
        (), description="name patterns of layers that receive the noise on their weights instead of their logits"
    )
    input: InputNoise | None = None

    @model_validator(mode="after")
    def _scheduled_scales_are_not_learned(self) -> Noise:
        if self.schedule and self.learn != "none":
            raise ConfigError(f"noise.schedule: has no effect with noise.learn '{self.learn}'; leave one of them out")
        if self.schedule and self.law == "none":
            raise ConfigError("noise.schedule: has no effect with noise.law 'none'; leave it out")
        return self

    @model_validator(mode="after")
    def _weights_have_noise(self) -> Noise:
        if self.weights and self.law == "none":
            raise ConfigError("noise.weights: has no effect with noise.law 'none'; leave it out")
        return self

    def scale_after(self, epochs: int) -> Scale:
        """Returns the noise scale after the given number of finished epochs."""
        passed = [epoch for epoch in self.schedule if epoch <= epochs]
        return self.schedule[max(passed)] if passed else self.scale
