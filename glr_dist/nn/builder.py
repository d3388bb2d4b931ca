"""From the section `model` of a configuration to a network of the zoo."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from glr_dist.config import Model, ZooModel
from glr_dist.errors import ConfigError
from glr_dist.nn.models import ModelBuilder
from glr_dist.text import hint, one_line, shown


def configured(network: Callable[..., nn.Module]) -> ModelBuilder:
    """Returns the builder, an entry of `MODELS`, of a function `(shape, classes, *, …, generator)`.

    The keyword-only arguments of the function, except `generator`, are the keys of the section `model`.
    """
    parameters = inspect.signature(network).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "generator"]

    def build(model: Model | ZooModel, shape: torch.Size, classes: int, stream: torch.Generator) -> nn.Module:
        arguments: dict[str, Any] = model.arguments if isinstance(model, ZooModel) else {}
        for key in arguments:
            if key not in known:
                nearest = hint(key, known, listed="it takes")
                raise ConfigError(f"model.{shown(key)[1:-1]}: is not an argument of {model.name}; {nearest}")
        try:
            return network(shape, classes, generator=stream, **arguments)
        except TypeError as error:
            raise ConfigError(f"model: {model.name} cannot be built ({one_line(error)})") from None

    return build
