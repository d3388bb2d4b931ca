"""The sections of a configuration: frozen, and each knows all its keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from glr_dist.errors import ConfigError, without_credentials


class Section(BaseModel):
    """A frozen part of the configuration that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not a truth value")
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_no_truth_value)]
Count = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Scale = Positive | Annotated[dict[str, Positive], Field(min_length=1)]


class Data(Section):
    """Which data set, where it lies, and how it is split."""

    name: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    root: str | None = Field(None, description="folder of the data; else $GLR_DATA, else ./data")
    download: bool = Field(True, description="fetch a missing data set")
    validation: Fraction = Field(0.1, description="share of the training set that choices are made on")
    test: Fraction = Field(0.2, description="share held out for the test where the data set has no test set of its own")
    split_seed: int = Field(0, ge=0, lt=2**63, description="names the splits; the run's seed does not change them")


class Model(Section):
    """The network: a multilayer perceptron as in the paper."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Count, ...] = (50,)
    activation: Literal["sigmoid", "tanh", "relu", "threshold", "sign", "staircase"] = "sigmoid"
    dropout: float = Field(0.0, ge=0, lt=1)
    init: Literal["paper", "torch"] = "torch"
    init_scale: Positive = 1.0


class Noise(Section):
    """The noise at the sites, and which modules are sites."""

    law: Literal["gaussian", "laplace", "logistic", "none"] = "gaussian"
    scale: Scale = Field(1.0, description="σ, or one for each pattern of site names")
    schedule: dict[Count, Scale] = Field({}, description="after so many epochs, another scale")
    learn: Literal["none", "site", "unit"] = Field("none", description="learn log σ by site or by unit")
    floor: Positive = Field(1e-3, description="the least σ that learning may reach")
    sites: tuple[str, ...] = Field(("Linear", "Conv2d"), min_length=1, description="types of torch.nn that are sites")
    names: tuple[str, ...] = Field(("*",), min_length=1, description="patterns of the names of sites")

    @model_validator(mode="after")
    def _scheduled_scales_are_not_learned(self) -> Noise:
        if self.schedule and self.learn != "none":
            raise ConfigError(f"noise.schedule: has no meaning with noise.learn '{self.learn}'; leave one of them out")
        if self.schedule and self.law == "none":
            raise ConfigError("noise.schedule: has no meaning with noise.law 'none'; leave it out")
        return self

    def scale_after(self, epochs: int) -> Scale:
        """The scale when so many epochs are done."""
        passed = [epoch for epoch in self.schedule if epoch <= epochs]
        return self.schedule[max(passed)] if passed else self.scale


class Estimator(Section):
    """How gradients are estimated. Combinations that would be biased are refused (`check_estimator`)."""

    name: Literal["conditional", "layerwise", "joint", "pathwise"] = "conditional"
    copies: Count | dict[str, Count] = Field(100, description="K: redraws per example, site and shared pass")
    passes: Count | dict[str, Count] = Field(1, description="M: shared passes per step")
    sampler: Literal["auto", "iid", "orthogonal", "sobol"] = Field(
        "auto", description="auto: orthogonal for Gaussian noise, else iid"
    )
    antithetic: bool = True
    baseline: Literal["none", "shared", "leave_one_out"] = "shared"
    exact_head: bool = Field(False, description="the last site's δ is the derivative of the loss at the noisy logits")
    example_block: Count = Field(128, description="examples per work item and per stream of noise")
    block_elements: Count = Field(2**19, description="the most elements of one tensor of a work item (memory)")
    items_per_site: Count = Field(
        16, description="the most work items of a site for each example block and shared pass; each sends one result"
    )


def _number_if_it_is_one(value: Any) -> Any:
    if isinstance(value, list):
        return [_number_if_it_is_one(part) for part in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class Named(BaseModel):
    """A torch class by name; all other keys are its own arguments, checked when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[Any, BeforeValidator(_number_if_it_is_one)]]
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys beside `name`."""
        return dict(self.__pydantic_extra__)


class Optimizer(Named):
    """An optimizer of torch.optim."""

    name: str = "Adam"


class Schedule(Named):
    """A learning-rate schedule of torch.optim.lr_scheduler, stepped every step or every epoch."""

    per: Literal["step", "epoch"] = "epoch"


class Training(Section):
    """The training loop."""

    epochs: Count = 10
    batch_size: Count = 128
    loss: Literal["cross_entropy", "zero_one"] = "cross_entropy"
    optimizer: Optimizer = Field(Optimizer(lr=0.01), description="a class of torch.optim and its arguments")
    schedule: Schedule | None = None
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2


class Execution(Section):
    """Where the work is done. On one kind of device no result depends on it, but for the rounding of `replicas`.

    `inline` is this process; `layers` spreads the work items of a step over Ray actors; `replicas` splits the batch
    over Ray Train workers; `auto` is `layers` where that is predicted to be faster, else `inline`.
    """

    kind: Literal["inline", "layers", "replicas", "auto"] = "inline"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: cuda where there is one")
    threads: Count | None = Field(None, description="threads that work on the items; torch's number by default")
    actors: Count | None = Field(None, description="Ray actors, or workers of `replicas`; as many as fit by default")
    cpus_per_actor: Positive = 1
    gpus_per_actor: float = Field(0, ge=0, allow_inf_nan=False)
    placement_timeout: Positive = Field(15, description="seconds to wait for the actors' place on the cluster")
    hang_timeout: Positive = Field(60, description="seconds until an actor that does not answer is restarted")
    max_failures: int = Field(3, ge=0, description="how often `replicas` starts again from the last checkpoint")

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _inline_is_this_process(self) -> Execution:
        for key in ("actors", "cpus_per_actor", "gpus_per_actor"):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if self.kind == "inline" and value != default:
                raise ConfigError(
                    f"execution.{key}: {value} has no meaning: 'inline' is this process alone; "
                    "leave it out, or set execution.kind to 'layers', 'replicas' or 'auto'"
                )
        return self


class Tracking(Section):
    """Where a run can be followed, beside its folder, which comes first and is the truth.

    Credentials in the URI (`https://user:password@host`) are used, but written nowhere: what is dumped as JSON or YAML
    has the URI without them.
    """

    kind: Literal["none", "mlflow"] = "none"
    uri: Annotated[str, PlainSerializer(without_credentials, when_used="json")] | None = Field(
        None, min_length=1, repr=False, description="else $MLFLOW_TRACKING_URI, else the file mlflow.db of this folder"
    )
    experiment: str = Field("glr_dist", min_length=1)
    tags: dict[str, str] = {}
    register_as: str | None = Field(None, min_length=1, description="the registered model that the network is made of")

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values


class Diagnose(Section):
    """What `glr-dist diagnose` measures."""

    copies: tuple[Count, ...] = Field((20, 50, 100, 200), min_length=1, description="the K to try")
    passes: tuple[Count, ...] = Field((1,), min_length=1, description="the M to try")
    draws: Annotated[int, Field(ge=2)] = Field(10, description="estimates for each K and M")
    batch: Count = Field(128, description="the first examples of the training set")
    reference: Literal["auto", "pathwise", "conditional", "joint"] = "auto"
    reference_passes: Annotated[int, Field(ge=2)] = Field(
        4000, description="noisy passes behind the reference; for conditional, redraws of each site"
    )
