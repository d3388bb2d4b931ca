"""The section `diagnose`: measurements of `glr-dist diagnose`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from glr_dist.config.section import Count, Fraction, Positive, Section


class Diagnose(Section):
    """Measurements of `glr-dist diagnose`."""

    copies: tuple[Count, ...] = Field((20, 50, 100, 200), min_length=1, description="values of K")
    passes: tuple[Count, ...] = Field((1,), min_length=1, description="values of M")
    scales: tuple[Positive, ...] = Field(
        (0.1, 0.2, 0.5, 1.0), min_length=1, description="values of σ that --grid compares"
    )
    cosine: Fraction = Field(0.95, description="cosine at every site for which K and M are recommended")
    draws: Annotated[int, Field(ge=2)] = Field(10, description="estimates per K and M")
    batch: Count = Field(128, description="number of examples, taken from the start of the training set")
    reference: Literal["auto", "pathwise", "conditional", "joint"] = "auto"
    reference_passes: Annotated[int, Field(ge=2)] = Field(
        4000, description="noisy passes of the reference gradient; for 'conditional', noise draws per site"
    )
