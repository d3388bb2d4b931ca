"""The networks of the paper's experiments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import nn

from glr_dist.config import Model
from glr_dist.errors import ConfigError
from glr_dist.nn.dropout import Dropout
from glr_dist.registry import ACTIVATIONS
from glr_dist.sizes import mlp_parameters

# (the section `model`: a `Model` or a `ZooModel`, shape of one example, number of classes, stream of the initial
# weights) -> the network
ModelBuilder = Callable[[Any, torch.Size, int, torch.Generator], nn.Module]


def build_mlp(model: Model, shape: torch.Size, classes: int, stream: torch.Generator) -> nn.Sequential:
    """Builds the multilayer perceptron of a configuration; takes the arguments of `ModelBuilder`.

    Raises:
        ConfigError: its parameters do not fit into the memory of this machine.
    """
    parameters = mlp_parameters(shape.numel(), model.hidden, classes, model.bias)
    size, memory = 4 * parameters, psutil.virtual_memory().total
    if size > memory:
        raise ConfigError(
            f"model.hidden: {parameters:,} parameters need {size / 2**30:,.0f} GiB, "
            f"this machine has {memory / 2**30:,.0f} GiB"
        )
    return mlp(
        shape.numel(),
        model.hidden,
        classes,
        model.activation,
        dropout=model.dropout,
        bias=model.bias,
        init=model.init,
        init_scale=model.init_scale,
        generator=stream,
    )


def mlp(
    inputs: int,
    hidden: Sequence[int],
    classes: int,
    activation: str = "sigmoid",
    *,
    dropout: float = 0.0,
    bias: str = "all",
    init: str = "paper",
    init_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a multilayer perceptron, inputs-hidden…-classes, which flattens its input.

    Args:
        inputs: number of features of an example.
        hidden: number of units of each hidden layer.
        classes: number of outputs.
        activation: a name of `ACTIVATIONS`, after each hidden layer.
        dropout: probability of the keyed dropout after each activation; 0 for none.
        bias: layers with a bias: "all", or "first" for the first one only.
        init: "paper", N(0, 4/(fan_in + 1)) for weights and biases, "authors", N(0, 4/fan_in) as in the authors' code,
            or "torch", torch's default law, uniform on ±1/√fan_in.
        init_scale: factor on every initial weight and bias.
        generator: stream of the initial weights.
    """
    widths = [inputs, *hidden, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        if index:
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(Dropout(dropout))
        biased = index == 0 or bias == "all"
        layers.append(_linear(fan_in, fan_out, init, init_scale, generator, biased=biased))
    return nn.Sequential(*layers)


@torch.no_grad()
def _linear(
    fan_in: int, fan_out: int, init: str, scale: float, generator: torch.Generator | None, *, biased: bool
) -> nn.Linear:
    linear = nn.Linear(fan_in, fan_out, biased, device="meta").to_empty(device="cpu")  # skips torch's own draw
    for parameter in linear.parameters():  # the weight, then the bias
        if init == "torch":
            parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        else:
            parameter.normal_(0, 2 / (fan_in + (init == "paper")) ** 0.5, generator=generator)
        parameter.mul_(scale)
    return linear
