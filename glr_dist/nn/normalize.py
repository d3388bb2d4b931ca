"""Normalisation of the inputs inside the network, so that attacks and corruptions stay in pixel space."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glr_dist.errors import ConfigError


class Normalize(nn.Module):
    """Computes (x - mean) / std, with constants per channel of images, or per feature of other inputs.

    Args:
        shape: shape of one input, [C, H, W], [D] or [T, D].
        mean: one number, or one for each channel or feature.
        std: one number, or one for each channel or feature.

    Raises:
        ConfigError: the number of constants is not that of the channels or features.
    """

    def __init__(self, shape: Sequence[int], mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, _constants(shape, value, name))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def normalized(
    module: nn.Module, shape: Sequence[int], mean: float | Sequence[float], std: float | Sequence[float]
) -> nn.Sequential:
    """Returns a network that normalises its input and then runs `module`, as its block `model`."""
    blocks = [("normalize", Normalize(shape, mean, std))]
    if type(module) is nn.Sequential:  # its blocks keep being replayed one by one
        return nn.Sequential(OrderedDict([*blocks, *module.named_children()]))
    return nn.Sequential(OrderedDict([*blocks, ("model", module)]))


def _constants(shape: Sequence[int], value: float | Sequence[float], name: str) -> Tensor:
    expected = shape[0 if len(shape) == 3 else -1] if shape else 1
    values = torch.as_tensor(value, dtype=torch.float32)
    if values.dim() and values.shape != (expected,):
        raise ConfigError(
            f"model.normalize.{name}: {values.numel()} values are not allowed: 1 or {expected} for inputs {list(shape)}"
        )
    if not shape:  # one number for each example
        return values.reshape(())
    return values.reshape(-1, 1, 1) if len(shape) == 3 and values.dim() else values
