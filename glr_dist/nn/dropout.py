"""Dropout whose masks come from the keyed streams of the pass that runs it.

Shapes: x [N, C, …] for N examples and C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor, nn

# Uniforms of the current pass: (module, x) -> values in (0, 1) of the shape of x. Set by `network.Network.run`.
Uniforms = Callable[[nn.Module, Tensor], Tensor]
KEYED: ContextVar[Uniforms | None] = ContextVar("glr_dist_keyed_uniforms", default=None)


class KeyedDropout(nn.Module):
    """Base class of modules that drop parts of their input with probability p in training mode.

    Unlike torch's modules they read no global state: an example keeps one mask in a shared pass and in all its
    redraws, the same on every worker. In evaluation mode they are the identity.

    Args:
        p: probability that a part is dropped, in [0, 1).

    Raises:
        ValueError: p is outside [0, 1).
        RuntimeError: called in training mode outside an estimate, where no keyed stream exists.
    """

    mask_dimensions: int | None = None  # leading dimensions over which masks differ; None for all

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"{type(self).__name__}: p {p} is not allowed: 0 <= p < 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keyed = KEYED.get()
        if keyed is None:
            raise RuntimeError(
                f"glr_dist.nn.{type(self).__name__} in training mode runs inside GLR.estimate only: call .eval() first"
            )
        like = x  # has the shape of the mask; its values are not used
        for dimension in range(self.mask_dimensions or x.dim(), x.dim()):
            like = like.narrow(dimension, 0, 1)
        return self.dropped(x, keyed(self, like) >= self.p)

    def dropped(self, x: Tensor, kept: Tensor) -> Tensor:
        """Returns x without its parts that are not kept."""
        return x * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout(KeyedDropout):
    """Zeroes each element with probability p in training mode and scales the rest by 1 / (1 - p).

    Keyed, in place of `torch.nn.Dropout`; see `KeyedDropout` for the argument and the errors.
    """


class ChannelDropout(KeyedDropout):
    """Zeroes each channel of x [N, C, …] with probability p in training mode and scales the rest by 1 / (1 - p).

    Keyed, in place of `torch.nn.Dropout1d`, `Dropout2d` and `Dropout3d`; see `KeyedDropout` for the argument and the
    errors.

    Reference:
        Tompson et al., Efficient Object Localization Using Convolutional Networks, CVPR 2015.
    """

    mask_dimensions = 2


class StochasticDepth(KeyedDropout):
    """Zeroes each example of x [N, …], as a rule a residual branch, with probability p; scales the rest by 1 / (1 - p).

    Keyed, in place of `torchvision.ops.StochasticDepth` in row mode; see `KeyedDropout` for the argument and the
    errors.

    Reference:
        Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
    """

    mask_dimensions = 1


class AlphaDropout(KeyedDropout):
    """Sets each element to α' with probability p in training mode, and keeps mean 0 and variance 1.

    a (x m + α' (1 - m)) + b for a mask m, α' = -λα of SELU, a = ((1 - p) (1 + p α'²))^-½ and b = -a p α'. Keyed, in
    place of `torch.nn.AlphaDropout`; see `KeyedDropout` for the argument and the errors.

    Reference:
        Klambauer et al., Self-Normalizing Neural Networks, NeurIPS 2017.
    """

    def dropped(self, x: Tensor, kept: Tensor) -> Tensor:
        scale: float = ((1 - self.p) * (1 + self.p * _ALPHA**2)) ** -0.5
        mixed: Tensor = torch.where(kept, x, _ALPHA) - self.p * _ALPHA
        return scale * mixed


class ChannelAlphaDropout(AlphaDropout):
    """Sets each channel of x [N, C, …] to α' with probability p in training mode, as `AlphaDropout` does elements.

    Keyed, in place of `torch.nn.FeatureAlphaDropout`; see `KeyedDropout` for the argument and the errors.
    """

    mask_dimensions = 2


_ALPHA = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717  # the lower limit of SELU
