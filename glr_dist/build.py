"""Builds the objects of a run from its configuration: device, network, executor, optimizer, schedule."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from glr_dist.checks import all_finite
from glr_dist.config import AnyModel, Config, Execution, Named, OwnModel, Schedule, Training
from glr_dist.data import Dataset, Split
from glr_dist.errors import ConfigError, UserError
from glr_dist.estimators import Step
from glr_dist.execution.device import checked_device, chosen_device
from glr_dist.execution.executor import Executor
from glr_dist.execution.inline import Inline
from glr_dist.glr import GLR
from glr_dist.imported import imported, place_of
from glr_dist.losses import Loss, per_example
from glr_dist.nn.noisy_weights import noisy_weights
from glr_dist.nn.normalize import normalized
from glr_dist.nn.own import own_module
from glr_dist.registry import LAWS, LOSSES, MODELS, OPTIMIZERS
from glr_dist.sites import by_site
from glr_dist.streams import Key, Role, generator
from glr_dist.text import hint, one_line, shortened, shown
from glr_dist.trees import Tree, count, leaves

_READ = 4096  # examples that are read at a time
_REHEARSED = 10_000  # steps of a schedule that are tried before training
_UNFIT = {"LBFGS": "evaluates the loss many times a step", "SparseAdam": "takes sparse gradients only"}


def device_of(execution: Execution) -> torch.device:
    """Returns the device of a run.

    Raises:
        ConfigError: this machine does not have it.
    """
    count = torch.cuda.device_count()
    return torch.device(checked_device(chosen_device(execution) or ("cuda" if count else "cpu"), count))


def network_of(config: Config, dataset: Dataset, device: torch.device, *, measure: bool = True) -> GLR:
    """Returns the network of a run with its keyed initial weights, prepared on the first examples.

    Args:
        config: the configuration.
        dataset: the data.
        device: where to compute.
        measure: measure the constants of `model.normalize: train`, for which all training examples are read; False if
            a checkpoint will give them.

    Raises:
        ConfigError: the network cannot be built, or torch.nn does not have a site type that the noise names.
        SiteError: the network does not have such a site, or the noise does not give a scale for one.
    """
    noise = config.noise
    law = None if noise.law == "none" else LAWS[noise.law](noise.scale, noise.learn, noise.floor)
    net = GLR(
        module_of(config, dataset, measure=measure).to(device),
        law,
        config.estimator,
        sites=[_known(nn, name, nn.Module, "noise.sites") for name in noise.sites],
        site_names=noise.names,
        seed=config.seed,
        verify=config.training.verify,
        executor=Inline(1 if device.type == "cuda" else config.execution.threads),
        output=config.model.output if isinstance(config.model, OwnModel) else None,
    )
    x = dataset.train.rows(slice(0, 2)).to(device).batch(slice(None))[0]
    with _refused_by(config.model, x):
        net.prepare(x)
        _check_outputs(net, x, config, dataset)
    for epoch, scale in noise.schedule.items():
        by_site(scale, [site.name for site in net.network.sites], f"noise.schedule.{epoch}")
    return net


def module_of(config: Config, dataset: Dataset, *, measure: bool = True) -> nn.Module:
    """Returns the module of a run, on the CPU, with its keyed initial weights and frozen parameters.

    Args:
        config: the configuration.
        dataset: the data.
        measure: as for `network_of`.

    Raises:
        ConfigError: it cannot be built, or a setting of the section `model` does not fit it.
    """
    model = config.model
    stream = generator(Key(config.seed, role=Role.INIT))
    try:
        if isinstance(model, OwnModel):
            module = own_module(model, dataset.shape, dataset.classes, stream, config.code)
        else:
            module = MODELS[model.name](model, dataset.shape, dataset.classes, stream)
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise ConfigError(f"model: {model.name} cannot be built ({one_line(error)})") from None
    if config.noise.weights:
        module = noisy_weights(module, config.noise.weights, what="noise.weights")
    for name, parameter in module.named_parameters():
        if not isinstance(parameter, nn.UninitializedParameter) and parameter.numel() == 0:
            raise ConfigError(
                f"model: the parameter {name!r} of {model.name} has the shape {list(parameter.shape)}, no number"
            )
    for pattern in model.freeze:
        parameters = [p for name, p in module.named_parameters() if fnmatchcase(name, pattern)]
        if not parameters:
            names = [name for name, _ in module.named_parameters()]
            raise ConfigError(f"model.freeze: {shown(pattern)} matches no parameter; {hint(pattern, names)}")
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(f"model: {model.name} has no parameter to train")
    if model.normalize is None:
        return module
    if not isinstance(dataset.train.images, Tensor):
        raise ConfigError("model.normalize: is not allowed: the inputs are several tensors; normalise the data instead")
    if model.normalize == "train":
        return normalized(
            module, dataset.shape, *mean_and_std(dataset.train if measure else dataset.train.rows(slice(0, 1)))
        )
    return normalized(module, dataset.shape, model.normalize.mean, model.normalize.std)


def mean_and_std(split: Split) -> tuple[list[float], list[float]]:
    """Returns the mean and standard deviation of the inputs [N, …], per channel of images or per feature.

    A feature that does not vary has the standard deviation 1.
    """
    total, squares, number = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0
    for start in range(0, len(split), _READ):
        x = split.batch(slice(start, start + _READ))[0].double()
        x = x.movedim(1, -1) if x.dim() == 4 else x[:, None] if x.dim() == 1 else x
        rows = x.reshape(-1, x.shape[-1])
        total, squares, number = total + rows.sum(0), squares + rows.square().sum(0), number + len(rows)
    mean = total / number
    std = (squares / number - mean.square()).clamp(min=0).sqrt()
    return mean.tolist(), torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0).tolist()


def loss_of(config: Config) -> Loss:
    """Returns the loss of a run: an entry of `LOSSES`, or the user's own function.

    Raises:
        ConfigError: it does not exist.
    """
    name = config.training.loss
    if name in LOSSES:
        return LOSSES[name]
    found = imported(name, "training.loss", config.code)
    if not callable(found):
        raise ConfigError(f"training.loss: {name} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _check_outputs(net: GLR, x: Tree, config: Config, dataset: Dataset) -> None:
    """Refuses a network whose outputs are not one for each example, or that has fewer scores than the data classes.

    Raises:
        ConfigError: names the network and both numbers.
    """
    training = net.training
    with torch.no_grad():
        outputs = net.eval()(x)
    net.train(training)
    labels, number = dataset.train.labels, count(x, "inputs")
    if outputs.shape[:1] != (number,):
        raise ConfigError(
            f"model: {config.model.name} returns {list(outputs.shape)} for {number} examples; its first dimension must "
            "be that of the examples"
        )
    if not dataset.of_classes or outputs.dim() != labels.dim() + 1:
        return
    each = "example" if labels.dim() == 1 else "token or pixel"
    scores = outputs.shape[-1] if outputs.shape[1:-1] == labels.shape[1:] else outputs.shape[1]
    if scores < dataset.classes:
        raise ConfigError(
            f"model: {config.model.name} returns {scores} scores for each {each}, the data have "
            f"{dataset.classes} classes"
        )


def check_loss(net: GLR, x: Tree, y: Tree, loss: Loss, config: Config) -> None:
    """Tries the loss on a few examples: a mistake in it shows here, not within the first step.

    Args:
        net: the prepared network.
        x: inputs of a few examples.
        y: their targets.
        loss: the loss of the run.
        config: its configuration, which names both in messages.

    Raises:
        ConfigError: the outputs or the losses are not finite, or the loss fails or does not return one number for each
            example.
    """
    training, name = net.training, config.training.loss
    with torch.no_grad():
        outputs = net.eval()(x)
    net.train(training)
    if not all_finite(outputs):
        raise ConfigError(f"model: {config.model.name} returns NaN or infinity for the first training examples")
    try:
        with torch.no_grad():
            values = per_example(loss(outputs, y), len(outputs))
    except UserError as error:
        raise ConfigError(f"training.loss: {shown(name)} does not fit ({str(error).removeprefix('loss: ')})") from None
    except Exception as error:
        shapes = f"outputs {list(outputs.shape)} and targets {', '.join(str(list(leaf.shape)) for leaf in leaves(y))}"
        raise ConfigError(f"training.loss: {name} refuses {shapes} {place_of(error)}") from None
    if not all_finite(values):
        raise ConfigError(f"training.loss: {name} is NaN or infinite for the first training examples")


@contextmanager
def _refused_by(model: AnyModel, x: Tree) -> Iterator[None]:
    """Turns an error of the user's network on its first examples into a ConfigError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves(x))
        raise ConfigError(f"model: {model.name} refuses inputs of shape {shapes} {place_of(error)}") from None


def executor_of(execution: Execution, net: GLR, step: Step) -> Executor:
    """Returns the executor that computes the work items of a run.

    Args:
        execution: the configuration.
        net: a network with the inline executor.
        step: the step that `auto` decides by.

    Raises:
        ClusterError: the cluster has no room for the actors.
    """
    assert isinstance(net.executor, Inline)
    threads, kind = net.executor.threads, execution.kind
    if kind == "auto":
        from glr_dist.execution.auto import choose  # importing Ray takes a second

        kind = choose(execution, net.estimator, step, threads)
    if kind == "layers":
        from glr_dist.execution.layers import Layers

        return Layers(
            execution.actors,
            cpus_per_actor=execution.cpus_per_actor,
            gpus_per_actor=execution.gpus_per_actor,
            threads=threads,
            placement_timeout=execution.placement_timeout,
            hang_timeout=execution.hang_timeout,
        )
    if kind == "replicas":
        from glr_dist.execution.all_reduce import Replicas

        return Replicas(threads)
    return net.executor


def optimizer_of(training: Training, net: GLR) -> Optimizer:
    """Returns the optimizer over all trainable parameters of the network and its noise.

    Raises:
        ConfigError: the optimizer or an argument does not exist, or it refuses a value.
    """
    kind = _known(torch.optim, training.optimizer.name, Optimizer, "training.optimizer.name", OPTIMIZERS)
    if reason := _UNFIT.get(training.optimizer.name):
        raise ConfigError(f"training.optimizer.name: {training.optimizer.name!r} {reason}; use another optimizer")
    groups: list[dict[str, Any]] = [{"params": [p for p in net.model.parameters() if p.requires_grad]}]
    if learned := [p for p in net.log_scales.parameters() if p.requires_grad]:
        groups.append({"params": learned})
        if "weight_decay" in inspect.signature(kind).parameters:
            groups[1]["weight_decay"] = 0.0  # weight decay would pull the scales to 1
    optimizer: Optimizer = _made(kind, (groups,), training.optimizer, "training.optimizer")
    with _refusals(training.optimizer, "training.optimizer"):
        _twin(optimizer).step()
    for key, value in optimizer.defaults.items():
        if isinstance(value, float) and abs(value) > torch.finfo(net.network.dtype).max:
            raise ConfigError(
                f"training.optimizer.{key}: {value} is not allowed: beyond the range of {net.network.dtype}"
            )
    return optimizer


def schedule_of(training: Training, optimizer: Optimizer, steps: int) -> LRScheduler | None:
    """Returns the learning-rate schedule, or None.

    A length that is not given (T_max, total_steps, …) is that of the run.

    Args:
        training: the configuration.
        optimizer: the optimizer whose learning rate it sets.
        steps: number of steps per epoch.

    Raises:
        ConfigError: the schedule or an argument does not exist, or it refuses a value.
    """
    chosen = training.schedule
    if chosen is None:
        return None
    kind = _known(lr_scheduler, chosen.name, LRScheduler, "training.schedule.name")
    plateau = issubclass(kind, lr_scheduler.ReduceLROnPlateau)
    if plateau and chosen.per == "step":
        raise ConfigError("training.schedule.per: 'step' is not allowed: ReduceLROnPlateau looks at the epoch's loss")
    length = training.epochs * (steps if chosen.per == "step" else 1)
    named = Schedule(**{**dict.fromkeys(run_lengths(training), length), **chosen.model_dump()})
    with _refusals(named, "training.schedule"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the order of the two kinds of steps, which does not matter here
        twin = _made(kind, (_twin(optimizer),), named, "training.schedule")
        for _ in range(min(length, _REHEARSED)):
            twin.step(1.0) if plateau else twin.step()
    return _made(kind, (optimizer,), named, "training.schedule")  # type: ignore[no-any-return]


def run_lengths(training: Training) -> list[str]:
    """Returns the arguments of the learning-rate schedule that default to the length of the run and are not given."""
    chosen = training.schedule
    if chosen is None or {"epochs", "steps_per_epoch"} <= chosen.arguments.keys():
        return []
    known = inspect.signature(_known(lr_scheduler, chosen.name, LRScheduler, "training.schedule.name")).parameters
    return [key for key in ("T_max", "total_steps", "total_iters") if key in known and key not in chosen.arguments]


def _twin(optimizer: Optimizer) -> Optimizer:
    """Returns an optimizer with the same settings over scalars, which raises errors before training starts."""
    groups = [{**group, "params": [nn.Parameter(torch.zeros(1, 1))]} for group in optimizer.param_groups]
    for group in groups:
        group["params"][0].grad = torch.zeros(1, 1)
    kind: Any = type(optimizer)
    twin: Optimizer = kind(groups)
    return twin


def _known(module: Any, name: str, base: type, where: str, own: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Returns the class of a torch module by its name, or an entry of the registry `own`."""
    found = own[name] if name in own else getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        return found
    kinds = {key: value for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)}
    names = sorted({*own, *(key for key, value in kinds.items() if value is not base)})
    raise ConfigError(f"{where}: {shown(name)} is not in {module.__name__}; {hint(name, names)}")


def _made(kind: Any, first: tuple[Any, ...], named: Named, where: str) -> Any:
    known = list(inspect.signature(kind).parameters)[1:]
    for key in named.arguments:
        if key not in known:
            nearest = hint(key, known, listed="it takes")
            raise ConfigError(f"{where}.{shown(key)[1:-1]}: is not an argument of {named.name}; {nearest}")
    with _refusals(named, where):
        return kind(*first, **named.arguments)


@contextmanager
def _refusals(named: Named, where: str) -> Iterator[None]:
    """Turns any error of a torch class into a ConfigError that names its section."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        given = shortened(", ".join(f"{key}={shown(value)}" for key, value in named.arguments.items()), 200)
        said = f"refuses {given}" if given else "needs arguments"
        raise ConfigError(f"{where}: {named.name} {said} ({one_line(error)})") from None
