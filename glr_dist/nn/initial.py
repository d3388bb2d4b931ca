"""Keyed initial weights: He's normal law for the layers of any network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Drawn(Protocol):
    """A module that draws its own initial parameters."""

    def draw(self, generator: torch.Generator | None) -> None:
        """Draws the parameters that belong to this module itself."""
        ...


def initialised(build: Callable[[], M], generator: torch.Generator | None) -> M:
    """Returns the network that `build` makes, with initial weights of the given stream.

    The weights of linear and convolutional layers are drawn from N(0, 2 / fan_in), and their biases are 0. A module
    with a method `draw(generator)` draws its own parameters; those of norms stay 1 and 0.

    Args:
        build: makes the network; what it draws from torch's global generator is overwritten, and the generator's state
            restored.
        generator: stream of the initial weights; None for torch's global generator.

    Reference:
        He, Zhang, Ren, Sun: Delving Deep into Rectifiers, ICCV 2015.
    """
    with torch.random.fork_rng(devices=[]):
        model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Drawn):
                module.draw(generator)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
    return model
