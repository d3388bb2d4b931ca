"""The exponential moving average of the weights over the steps, which a run tests and keeps in place of the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from glr_dist.glr import GLR


class Average:
    """Moving average of the parameters of a network; its buffers are those of the last step.

    After step t, average ← d · average + (1 - d) · parameters with d = min(decay, (1 + t) / (10 + t)), so that the
    initial weights are soon forgotten.

    Args:
        net: the network.
        decay: limit of d.
    """

    def __init__(self, net: GLR, decay: float) -> None:
        self._net, self._decay = net, decay
        self._values = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the parameters after a step, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._net.named_parameters():
            self._values[name].lerp_(parameter, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state of the network with averaged parameters."""
        return {**self._net.state_dict(), **self._values}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes the averages from the state of a network."""
        self._values = {name: state[name].clone() for name in self._values}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the network the averaged parameters, and its own ones back afterwards."""
        own = {name: parameter.detach().clone() for name, parameter in self._net.named_parameters()}
        try:
            self._copy(self._values)
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._net.named_parameters():
            parameter.copy_(values[name])
