"""The section `estimator`: how a gradient is estimated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from glr_dist.config.section import Count, Positive, Section
from glr_dist.errors import ConfigError

Redraw = Literal["copies", "levels", "column_space", "auto", "flips", "differences"]
UNIT_WISE = ("flips", "differences")  # the ways that go unit by unit


class Estimator(Section):
    """The gradient estimator. `check_estimator` refuses biased combinations."""

    name: Literal["conditional", "layerwise", "joint", "pathwise"] = "conditional"
    copies: Literal["auto"] | Count | dict[str, Count] = Field(
        100, description="K: noise draws per example, site and shared pass; auto: allotted to the sites within `budget`"
    )
    passes: Literal["auto"] | Count | dict[str, Count] = Field(
        1, description="M: shared passes per step; auto: allotted within `budget`"
    )
    budget: Annotated[Positive, Field(le=1e9)] | None = Field(
        None, description="forward passes per step that 'auto' allots to the sites by measured variance"
    )
    measure_every: Count = Field(500, description="steps between two measurements of the variance for `budget`")
    sampler: Literal["auto", "iid", "orthogonal", "sobol"] = Field(
        "auto", description="auto: orthogonal for Gaussian noise, else iid"
    )
    antithetic: bool = True
    baseline: Literal["none", "shared", "leave_one_out"] = "shared"
    redraw: Redraw | Annotated[dict[str, Redraw], Field(min_length=1)] = Field(
        "copies",
        description="copies: K draws of the site's noise; levels: the same, with the mean of their scores given the "
        "levels of the piecewise constant units behind, which has less variance; column_space: K draws of the "
        "component in the column space of the layer's input (convolutions, layers over tokens); flips: each piecewise "
        "constant unit at its other levels, instead of draws; differences: each unit at both ends of a random "
        "interval; auto: flips or differences at the last hidden site before a linear head that is not sampled, "
        "elsewhere levels where the units are piecewise constant, column_space where it pays, else copies, within a "
        "budget also flips or differences",
    )
    feedback: Literal["none", "control_variate", "biased"] = Field(
        "none",
        description="use of a linear map from the output error to a site's δ, learned from its past estimates. "
        "control_variate: lowers the variance of redraws without bias; biased: takes their place as far as it has "
        "predicted them",
    )
    head: Literal["sampled", "derivative", "expected", "auto"] = Field(
        "sampled",
        description="noise of the last site: drawn; drawn, with the loss's derivative; or integrated out. auto: the "
        "best that loss and network allow",
    )
    head_draws: Count = Field(8, description="draws per example and shared pass at which `derivative` is evaluated")
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the examples of each block that sites are redrawn for; those with a large loss are drawn "
        "more often, without bias",
    )
    example_block: Count = Field(128, description="examples per work item and per noise stream")
    block_elements: Count | Literal["auto"] = Field(
        "auto",
        description="maximum number of elements of one tensor of a work item; auto: 2^19, which the caches of a core "
        "hold, and 2^24 on a GPU",
    )
    items_per_site: Count = Field(
        16, description="maximum number of work items per site, example block and shared pass; each sends one result"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_0_4(cls, values: Any) -> Any:
        """Replaces `exact_head` of version 0.4 by `head`."""
        if not isinstance(values, Mapping) or "exact_head" not in values:
            return values
        values = dict(values)
        exact = values.pop("exact_head")
        if not isinstance(exact, bool):
            raise ConfigError(f"estimator.exact_head: {exact!r} is not allowed: true or false; or use estimator.head")
        if exact and values.setdefault("head", "derivative") != "derivative":
            raise ConfigError(
                f"estimator.exact_head: means estimator.head 'derivative', but that is {values['head']!r}; leave it out"
            )
        copies = values.get("copies", cls.model_fields["copies"].default)
        if exact and isinstance(copies, int) and values.get("name") != "joint":
            values.setdefault("head_draws", copies)  # as many as version 0.4 drew
        return values
