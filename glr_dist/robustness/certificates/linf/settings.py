"""Settings of L∞ certificates. Imports neither torch nor Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from glr_dist.config import Count, Section
from glr_dist.errors import ConfigError
from glr_dist.robustness.suite import Adaptive, Epsilons, SuiteName


class LinfCertification(Section):
    """Everything besides the run that determines its L∞ certificates, of predictions without noise."""

    norm: Literal["linf"] = "linf"
    name: SuiteName = Field("linf", description="name of the results, NAME-SPLIT")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the attack")
    split: Literal["test", "validation"] = "test"
    examples: Count | None = Field(None, description="certify the first N images of the split; default: all")
    eps: Epsilons = Field((0.02, 0.05), description="L∞ radii")
    nodes: int = Field(
        1000, ge=0, le=10**9, description="nodes of the search of a mixed-integer program; 0: intervals only"
    )
    steps: int = Field(20, ge=0, le=10**9, description="steps of the attack; 0: none")
    adaptive: Adaptive = Field(Adaptive(), description="the attacker's noise, as in an evaluation")
    block: Count = Field(5, description="images per work item")

    @model_validator(mode="after")
    def _distinct(self) -> LinfCertification:
        if len(set(self.eps)) < len(self.eps):
            raise ConfigError(f"eps: {list(self.eps)} is not allowed: each radius may occur once")
        return self

    @property
    def report_name(self) -> str:
        """The name of the results, `NAME-SPLIT`."""
        return f"{self.name}-{self.split}"
