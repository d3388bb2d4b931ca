"""The section `execution`: where work is computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from glr_dist.config.section import Count, Positive, Seconds, Section
from glr_dist.errors import ConfigError


class Execution(Section):
    """Executor of a step. On one type of device it does not change results, except for rounding in `replicas`.

    `compile` changes results within rounding: a run notes which of its two values it uses, and keeps it.

    `inline`: in this process. `layers`: the work items of a step on Ray actors. `replicas`: the examples of a batch on
    Ray Train workers. `auto`: `layers` if it is predicted to be faster than `inline`.
    """

    kind: Literal["inline", "layers", "replicas", "auto"] = "inline"
    compile: Literal["none", "step", "auto"] = Field(
        "none", description="shared passes and redraws as compiled functions (auto: if enough steps are to come)"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: CUDA if available")
    threads: Count | None = Field(None, description="threads that compute work items (default: as many as torch)")
    actors: Count | None = Field(None, description="Ray actors, or workers of `replicas` (default: as many as fit)")
    cpus_per_actor: Annotated[Positive, Field(le=1e6)] = 1
    gpus_per_actor: float = Field(0, ge=0, le=1e6, allow_inf_nan=False)
    placement_timeout: Seconds = Field(15, description="seconds to wait until the cluster has placed the actors")
    hang_timeout: Seconds = Field(60, description="seconds after which an actor that does not answer is restarted")
    max_failures: int = Field(3, ge=0, le=10**9, description="restarts of `replicas` from the last checkpoint")

    @model_validator(mode="before")
    @classmethod
    def _from_kind(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _inline_has_no_actors(self) -> Execution:
        for key in ("actors", "cpus_per_actor", "gpus_per_actor"):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if self.kind == "inline" and value != default:
                raise ConfigError(
                    f"execution.{key}: {value} has no effect with execution.kind 'inline', which uses only this "
                    "process; leave it out, or set execution.kind to 'layers', 'replicas' or 'auto'"
                )
        return self
