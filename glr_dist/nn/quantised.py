"""A multilayer perceptron whose activations have 2 to 8 bits.

Its weights are not rounded: a rounded weight has no derivative, and the straight-through gradient is that of another
network, which the verification of `GLR` refuses.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glr_dist.errors import ConfigError
from glr_dist.nn.arguments import check_widths
from glr_dist.nn.builder import configured
from glr_dist.nn.initial import initialised


class Quantise(nn.Module):
    """Rounds to 2^b levels in [0, 1]: round(clip(x, 0, 1) · (2^b - 1)) / (2^b - 1). No gradient passes.

    Args:
        bits: b, from 1 to 16.

    Raises:
        ConfigError: b is another value.
    """

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
            raise ConfigError(f"Quantise: bits {bits!r} is not allowed: an integer from 1 to 16")
        self.bits = bits
        top = 2**bits - 1
        self.thresholds = tuple((k - 0.5) / top for k in range(1, top + 1))

    def forward(self, x: Tensor) -> Tensor:
        top = 2**self.bits - 1
        return x.detach().clamp(0, 1).mul_(top).round_().div_(top)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def quantised_mlp(
    shape: Sequence[int],
    classes: int,
    *,
    hidden: Sequence[int] = (100,),
    bits: int = 2,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a multilayer perceptron with activations of a few bits, [N, *shape] -> [N, classes].

    Args:
        shape: shape of an example.
        classes: number of outputs.
        hidden: number of units of each hidden layer.
        bits: bits of an activation, which takes 2^bits values in [0, 1].
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        Hubara et al., Quantized Neural Networks, JMLR 2018, who train them by straight-through gradients.
    """
    check_widths("quantised_mlp", hidden=hidden)
    Quantise(bits)  # refuses other numbers, also without a hidden layer
    widths = [torch.Size(shape).numel(), *hidden]

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), Quantise(bits)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    return initialised(build, generator)


build_quantised_mlp = configured(quantised_mlp)
