"""The sections of a configuration. Each is frozen and refuses unknown keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticKnownError

from glr_dist.errors import ConfigError
from glr_dist.imported import is_import_path
from glr_dist.registry import ACTIVATIONS, DATASETS, LAWS, LOSSES, MODELS, ZOO

READ = ("image_folder", "arrays", "table", "tiny_imagenet")  # data sets that are read from data.path
DECODED = ("image_folder", "tiny_imagenet")  # data sets of encoded images


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not a boolean")
    return value


def one_of(*groups: Collection[str], own: bool = False) -> BeforeValidator:
    """Returns a validator that accepts the names in `groups`, such as those of a registry, as they are at that time.

    Args:
        *groups: the names.
        own: accept an import path, `package.module:name`, too.
    """

    def check(value: Any) -> Any:
        names = [name for group in groups for name in group]
        if not (isinstance(value, str) and value in names) and not (own and is_import_path(value)):
            expected = _alternatives(names)
            raise PydanticKnownError(
                "literal_error", {"expected": f"{expected}, or your own package.module:name" if own else expected}
            )
        return value

    return BeforeValidator(check)


def _alternatives(names: Collection[str]) -> str:
    *others, last = [f"'{name}'" for name in names]
    return f"{', '.join(others)} or {last}" if others else last


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_not_boolean)]
Count = Annotated[int, BeforeValidator(_not_boolean), Field(ge=1, le=10**9)]
Seconds = Annotated[Positive, Field(le=1e9)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Scale = Positive | Annotated[dict[str, Positive], Field(min_length=1)]


class Augment(Section):
    """Random changes of the training images, drawn anew in each step."""

    crop: int = Field(0, ge=0, description="pixels of zero padding on each side, of which a random crop is taken")
    flip: bool = Field(False, description="mirror half of the images")
    noise: float = Field(0.0, ge=0, allow_inf_nan=False, description="standard deviation of Gaussian noise on pixels")
    cutout: int = Field(0, ge=0, description="side of a random square that is set to 0")


class Data(Section):
    """The data set, its folder, its split and its augmentation."""

    name: Annotated[str, one_of(DATASETS, own=True)] = "digits"
    root: str | None = Field(None, description="folder of the data (default: $GLR_DATA, else ./data)")
    path: str | None = Field(
        None, min_length=1, description="file or folder, in data.root, the working directory or the folder of this file"
    )
    download: bool = Field(True, description="download the data set if it is missing")
    validation: Fraction = Field(0.1, description="share of the training set held out for validation")
    test: Fraction = Field(0.2, description="share held out for testing if the data set has no test set")
    split_seed: int = Field(0, ge=0, lt=2**63, description="seed of the splits; independent of the run's seed")
    target: str | tuple[str, ...] | None = Field(None, description="column of a table that is predicted, or several")
    resize: Count | tuple[Count, Count] | None = Field(
        None, description="length of an image's shorter side in pixels, or [height, width]"
    )
    crop: Count | None = Field(None, description="side in pixels of the central square that is kept of an image")
    channels: Literal[1, 3] = Field(3, description="decode images as grey (1) or colour (3)")
    skip_corrupt: bool = Field(False, description="leave out images that cannot be decoded")
    augment: Augment | None = None

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Data:
        kinds = {"path": READ, "target": ("table",)}
        kinds |= dict.fromkeys(("resize", "crop", "channels", "skip_corrupt"), DECODED)
        for key, names in kinds.items():
            value, default = getattr(self, key), type(self).model_fields[key].default
            if is_import_path(self.name) and (key != "skip_corrupt" or not self.name.startswith("torchvision:")):
                continue  # the user's function may take it; torchvision's images are decoded
            if value != default and self.name not in names:
                raise ConfigError(f"data.{key}: has no effect with data.name {self.name!r}; leave it out")
        if self.path is None and self.name in READ and self.name != "tiny_imagenet":
            raise ConfigError(f"data.path: is missing; data.name {self.name!r} needs the file or folder to read")
        if self.name == "table" and not self.target:
            raise ConfigError("data.target: is missing; name the column to predict")
        return self


class OwnData(Data):
    """Data of a function of the user's or a class of torchvision. All unknown keys are its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)
    __pydantic_extra__: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not fields of the section."""
        return dict(self.__pydantic_extra__)


def _name_of(value: Any) -> Any:
    return value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)


def _kind_of_data(value: Any) -> str:
    return "OwnData" if is_import_path(_name_of(value)) else "Data"


AnyData = Annotated[Annotated[Data, Tag("Data")] | Annotated[OwnData, Tag("OwnData")], Discriminator(_kind_of_data)]


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
    input: InputNoise | None = None

    @model_validator(mode="after")
    def _scheduled_scales_are_not_learned(self) -> Noise:
        if self.schedule and self.learn != "none":
            raise ConfigError(f"noise.schedule: has no effect with noise.learn '{self.learn}'; leave one of them out")
        if self.schedule and self.law == "none":
            raise ConfigError("noise.schedule: has no effect with noise.law 'none'; leave it out")
        return self

    def scale_after(self, epochs: int) -> Scale:
        """Returns the noise scale after the given number of finished epochs."""
        passed = [epoch for epoch in self.schedule if epoch <= epochs]
        return self.schedule[max(passed)] if passed else self.scale


Redraw = Literal["copies", "column_space", "auto", "flips"]


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
        description="copies: K draws of the site's noise; column_space: K draws of its component in the column space "
        "of the layer's input (convolutions, layers over tokens); auto: column_space where it pays, else copies, "
        "within a budget also flips; flips: each piecewise constant unit at its other levels, instead of draws",
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
    example_block: Count = Field(128, description="examples per work item and per noise stream")
    block_elements: Count = Field(2**19, description="maximum number of elements of one tensor of a work item")
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


class Named(BaseModel):
    """A torch class by name. All other keys are arguments of the class, which are checked when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Any]
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys except `name`."""
        return dict(self.__pydantic_extra__)


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
    name = _name_of(value)
    return "OwnModel" if is_import_path(name) else "ZooModel" if isinstance(name, str) and name in ZOO else "Model"


AnyModel = Annotated[
    Annotated[Model, Tag("Model")] | Annotated[ZooModel, Tag("ZooModel")] | Annotated[OwnModel, Tag("OwnModel")],
    Discriminator(_kind_of_model),
]


class Optimizer(Named):
    """An optimizer: a class of torch.optim, or an entry of `OPTIMIZERS`."""

    name: str = "Adam"


class Schedule(Named):
    """A learning-rate schedule: a class of torch.optim.lr_scheduler, stepped once per step or per epoch."""

    per: Literal["step", "epoch"] = "epoch"


Metric = Literal["top5_accuracy", "f1", "auc", "recall", "mae", "r2"]


class EarlyStopping(Section):
    """Ends a run when a metric has not improved for some epochs. The best epoch is that of this metric."""

    patience: Count = Field(description="epochs without an improvement after which the run ends")
    metric: Literal["accuracy", "loss", "top5_accuracy", "f1", "auc", "mae", "r2"] = Field(
        "accuracy", description="metric of the validation examples"
    )


class Penalty(Section):
    """Terms that are added to the objective; their gradients are local to a layer."""

    spectral: Scale = Field(
        description="λ of λ‖W‖₂, added for the first layer, or a mapping of layer-name patterns to λ"
    )


class Adversarial(Section):
    """Adversarial training on images that FGSM or PGD makes for the network as it is."""

    epsilon: Positive = Field(description="radius of the L∞ ball, in pixel values in [0, 1]")
    steps: Count = Field(1, description="steps of the attack: 1 is FGSM, more are PGD from a random point")
    every: Count = Field(1, description="a step of training in this number is adversarial")
    gradient: Literal["estimated", "exact"] = Field(
        "estimated", description="by the likelihood ratio under noise, or the derivative without noise"
    )
    copies: Count | None = Field(
        None, description="redraws of an estimate (default: twice the units of the first site, at most 1,024)"
    )
    spread: Positive | None = Field(
        None, description="σ of the estimate's noise, in standard deviations of a site's logits (default: as trained)"
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Adversarial:
        for key in ("copies", "spread"):
            if self.gradient == "exact" and getattr(self, key) is not None:
                raise ConfigError(f"training.adversarial.{key}: has no effect with gradient 'exact'; leave it out")
        return self


class Training(Section):
    """The training loop."""

    epochs: Count = 10
    batch_size: Count = 128
    loss: Annotated[str, one_of(LOSSES, own=True)] = "cross_entropy"
    optimizer: Optimizer = Field(Optimizer(lr=0.01), description="a class of torch.optim and its arguments")
    schedule: Schedule | None = None
    penalty: Penalty | None = None
    adversarial: Adversarial | None = None
    metrics: tuple[Metric, ...] = Field((), description="on the validation and test examples, beside accuracy and loss")
    early_stopping: EarlyStopping | None = None
    warmup: int = Field(0, ge=0, le=10**9, description="steps in which the learning rate grows linearly from 0")
    clip_norm: Positive | None = Field(None, description="maximum norm of the gradient of all parameters")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the moving average of the weights, which is tested and kept"
    )
    max_steps: Count | None = Field(
        None, description="the run ends after this number of steps, if need be within an epoch"
    )
    max_seconds: Positive | None = Field(None, description="no epoch begins after this time of training, in seconds")
    verify: bool = Field(True, description="check on a few examples that the network is what the estimates rely on")
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(
        2, description="number of newest checkpoints to keep, besides the best one by validation accuracy"
    )

    @model_validator(mode="after")
    def _watched_metric_is_measured(self) -> Training:
        if (early := self.early_stopping) and early.metric not in ("accuracy", "loss", *self.metrics):
            raise ConfigError(
                f"training.early_stopping.metric: '{early.metric}' is not measured; add it to training.metrics"
            )
        return self


class Execution(Section):
    """Executor of a step. On one type of device it does not change results, except for rounding in `replicas`.

    `inline`: in this process. `layers`: the work items of a step on Ray actors. `replicas`: the examples of a batch on
    Ray Train workers. `auto`: `layers` if it is predicted to be faster than `inline`.
    """

    kind: Literal["inline", "layers", "replicas", "auto"] = "inline"
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
