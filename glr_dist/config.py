"""The configuration: one YAML file and dotted overrides -> one frozen `Config`. Imports neither torch nor Ray."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from glr_dist.errors import ConfigError, without_credentials


class Section(BaseModel):
    """A frozen part of the configuration that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not a truth value")
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Scale = Positive | dict[str, Positive]


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


# ---------------------------------------------------------------- what would be biased


def resolve_sampler(estimator: Estimator, noise: Noise) -> str:
    """The sampler that `auto` stands for."""
    if estimator.sampler != "auto":
        return estimator.sampler
    return "orthogonal" if noise.law == "gaussian" and estimator.name != "pathwise" else "iid"


def per_site(value: int | Mapping[str, int]) -> list[int]:
    """The values that a number, or a mapping of site patterns to numbers, can give."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


def check_estimator(estimator: Estimator, noise: Noise, loss: str | None = None) -> None:
    """Refuses combinations that would be biased or mean nothing.

    Raises:
        ConfigError: with the reason.
    """
    e, law = estimator, noise.law
    if e.name == "pathwise":
        default = Estimator()
        for key in ("copies", "antithetic", "baseline", "exact_head"):
            if getattr(e, key) != getattr(default, key):
                raise ConfigError(
                    f"estimator.{key}: has no meaning with 'pathwise', which redraws nothing; leave it out"
                )
        if e.sampler not in ("auto", "iid"):
            raise ConfigError(f"estimator.sampler: {e.sampler!r} has no meaning with 'pathwise', which redraws nothing")
        if isinstance(e.passes, Mapping):
            raise ConfigError("estimator.passes: 'pathwise' runs whole passes; give one number for all sites")
        if law == "none" and (e.passes != 1 or noise.learn != "none"):
            raise ConfigError("noise.law: 'none' leaves one pass and no scale to learn: passes 1 and learn 'none'")
        if loss == "zero_one":
            raise ConfigError("training.loss: 'zero_one' has no derivative for 'pathwise'; use another estimator")
        return
    if law == "none":
        raise ConfigError(f"noise.law: 'none' is for the estimator 'pathwise' only; {e.name!r} needs noise to estimate")
    if e.antithetic and any(copies % 2 for copies in per_site(e.copies)):
        odd = next(copies for copies in per_site(e.copies) if copies % 2)
        raise ConfigError(f"estimator.copies: {odd} is odd, antithetic pairs need an even number")
    if e.sampler == "orthogonal" and law != "gaussian":
        raise ConfigError(
            f"estimator.sampler: 'orthogonal' needs the gaussian law, a rotation of {law} noise is not {law}; use 'iid'"
        )
    if e.baseline == "leave_one_out":
        if e.sampler == "sobol":
            raise ConfigError(
                "estimator.baseline: 'leave_one_out' is biased within a sobol set; use 'shared' or 'none'"
            )
        if e.sampler == "orthogonal" and noise.learn == "unit":
            raise ConfigError(
                "estimator.baseline: 'leave_one_out' is biased for unit scales within an orthogonal frame; use 'shared'"
            )
        least = 4 if e.antithetic else 2
        if min(per_site(e.copies)) < least:
            raise ConfigError(
                f"estimator.copies: 'leave_one_out' needs two independent groups, at least {least} copies"
            )
    if e.name == "joint":
        for key in ("copies", "passes"):
            if isinstance(getattr(e, key), Mapping):
                raise ConfigError(f"estimator.{key}: 'joint' varies all sites at once; give one number for all sites")
    if e.name != "conditional" and per_site(e.passes) != [1]:
        raise ConfigError(f"estimator.passes: {e.name!r} keeps no noise of a shared pass; only 1 is allowed")
    if e.exact_head and loss == "zero_one":
        raise ConfigError("estimator.exact_head: 'zero_one' has no derivative; use 'cross_entropy' or turn it off")


# ---------------------------------------------------------------- reading


S = TypeVar("S", bound=BaseModel)


def build(section: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Validates `values`; a mistake becomes a one-line ConfigError.

    Args:
        section: the pydantic model.
        values: what the user gave.
        where: put before the field's name in an error.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(section, error, where)) from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is a mistake: by default the last one wins silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file with `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing, no YAML, or holds a mistake.
    """
    return build(Config, overridden(read(path), overrides))


def read(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: the file is missing, no YAML, or no mapping.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: must hold a mapping of sections, holds a {type(values).__name__}")
    return values or {}


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with `section.key=value` overrides applied, in place.

    Raises:
        ConfigError: an override has another form.
    """
    for override in overrides:
        _apply(values, override)
    return values


def dump(config: Config) -> str:
    """The resolved configuration with every default, as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r}: an override must have the form section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if inner is None:
            inner = values[parent] = {}
        elif not isinstance(inner, dict):
            raise ConfigError(f"{key}: '{parent}' holds {inner!r}, not a mapping")
        values = inner
    values[last] = value


def _one_line(section: type[BaseModel], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
        return str(cause)
    field, known = _field(section, first["loc"])
    field = where + field
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field.rpartition(".")[2], known.model_fields, 1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known.model_fields)}"
        return f"{field}: unknown key{hint}"
    if first["type"] == "missing":
        return f"{field}: is missing"
    place = [str(part) for part in first["loc"]]
    allowed = " or ".join(
        dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in error.errors() if _same(e, place))
    )
    value, expected = first["input"], first.get("ctx", {}).get("expected", "")
    if first["type"].startswith("union_tag"):  # which of several sections it is, is said by its key `name`
        if first["type"] == "union_tag_not_found":
            return f"{field}.name: is missing"
        field, value, allowed = f"{field}.name", first["ctx"]["tag"], first["ctx"]["expected_tags"]
        expected = allowed
    hint = ""
    if expected and isinstance(value, str):
        options = [o.strip("' ") for o in expected.replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(value, options, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{field}: {value!r} is not allowed: {allowed}{hint}"


def _field(section: type[BaseModel], place: Sequence[int | str]) -> tuple[str, type[BaseModel]]:
    """The dotted name of the field at a place, and the section that it is in.

    A union reports one error per branch and puts the branch's name into the place, which is noise for a reader.
    """
    fields: list[str] = []
    known = [section]
    for part in place:
        owner = next((model for model in known if part in model.model_fields), None)
        if isinstance(part, int):
            fields.append(str(part))
        elif owner is not None:
            fields.append(part)
            known = _models(owner.model_fields[part].annotation)
        elif tagged := [model for model in known if part == _tag(model)]:
            known = tagged
        else:
            fields += [part] * bool(known)  # an unknown key
            break
    return ".".join(fields), known[0] if known else section


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tag(model: type[BaseModel]) -> Any:
    """What the key `name` of a section holds, where it says which of several sections it is."""
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _same(error: Any, place: list[str]) -> bool:
    """Whether an error is about the same field: its first two steps; deeper ones may name a union's branches."""
    if error["type"] == "too_short" and len(error["loc"]) < len(place):
        return False  # of a list whose members are wrong: they were dropped
    return [str(part) for part in error["loc"]][:2] == place[:2]
