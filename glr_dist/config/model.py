"""The section `model`: an MLP, a network of the zoo, or one of the user's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from glr_dist.config.section import Count, Named, Positive, Section, name_of, one_of
from glr_dist.errors import ConfigError
from glr_dist.imported import is_import_path
from glr_dist.registry import ACTIVATIONS, MODELS, ZOO


class Normalize(Section):
    """Mean and standard deviation that the network's first module subtracts and divides by, per channel or feature."""

    mean: float | tuple[float, ...] = 0.0
    std: Positive | tuple[Positive, ...] = 1.0


Weights = Annotated[str, Field(min_length=1)] | None


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None


def check_digest(model: AnyModel) -> None:
    """Refuses a digest of weights that are not given.

    Raises:
        ConfigError: names the field.
    """
    if model.weights_sha256 is not None and model.weights is None:
        raise ConfigError("model.weights_sha256: has no effect without model.weights; leave it out")


def _weights() -> Any:
    return Field(None, description="folder or checkpoint of another run; training begins with its parameters")


def _weights_sha256() -> Any:
    return Field(None, description="params_sha256 of the weights; recorded by the run, and checked if it is given")


def _freeze() -> Any:
    return Field((), description="patterns of parameter names, such as 'conv1.*', that are not trained")


def _normalize() -> Any:
    return Field(
        None, description="mean and std, subtracted and divided by inside the network; 'train': those of the data"
    )


class Model(Section):
    """The network: a multilayer perceptron as in the paper."""

    name: Annotated[str, one_of(MODELS, own=True)] = "mlp"
    hidden: tuple[Count, ...] = Field((50,), description="units of each hidden layer")
    activation: Annotated[str, one_of(ACTIVATIONS)] = "sigmoid"
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability after each activation")
    bias: Literal["all", "first"] = Field("all", description="layers with a bias: all, or the first one only")
    init: Literal["paper", "authors", "torch"] = Field("torch", description="law of the initial weights")
    init_scale: Positive = Field(1.0, description="factor on the initial weights and biases")
    weights: Weights = _weights()
    weights_sha256: Digest = _weights_sha256()
    freeze: tuple[str, ...] = _freeze()
    normalize: Normalize | Literal["train"] | None = _normalize()

    @model_validator(mode="after")
    def _digest_of_weights(self) -> Model:
        check_digest(self)
        return self


class ZooModel(Named):
    """A network of `glr_dist.nn`. All other keys are arguments of its builder, which are checked when it is built."""

    name: Annotated[str, one_of(ZOO)]
    weights: Weights = _weights()
    weights_sha256: Digest = _weights_sha256()
    freeze: tuple[str, ...] = _freeze()
    normalize: Normalize | Literal["train"] | None = _normalize()

    @model_validator(mode="after")
    def _digest_of_weights(self) -> ZooModel:
        check_digest(self)
        return self


class OwnModel(ZooModel):
    """A network of the user's: a class or a function that returns a module. All other keys are its arguments."""

    name: Annotated[str, one_of(ZOO, own=True)]
    opened: bool = Field(False, description="replace recurrent and attention modules by ones with sites inside")
    fixed: bool | Literal["group", "shared"] = Field(
        False, description="replace modules that an estimate refuses; batch norms by group norms or shared ones"
    )
    output: str | int | None = Field(None, description="the output among several values that the network returns")


def _kind_of_model(value: Any) -> str:
    """Returns the name of the section that describes a model."""
    name = name_of(value)
    return "OwnModel" if is_import_path(name) else "ZooModel" if isinstance(name, str) and name in ZOO else "Model"


AnyModel = Annotated[
    Annotated[Model, Tag("Model")] | Annotated[ZooModel, Tag("ZooModel")] | Annotated[OwnModel, Tag("OwnModel")],
    Discriminator(_kind_of_model),
]
