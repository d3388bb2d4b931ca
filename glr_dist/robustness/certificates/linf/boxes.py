"""Boxes of values, and what a module makes of them: bounds that hold for the network's own floating-point arithmetic.

Shapes: centre and radius of a box [n, *S]; weight of a linear layer [O, I].
"""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glr_dist.errors import SiteError
from glr_dist.nn.activations import Heaviside, Sign, Staircase
from glr_dist.nn.dropout import KeyedDropout
from glr_dist.nn.normalize import Normalize


class Box(NamedTuple):
    """All values within `radius` of `centre`, elementwise, in float64.

    Attributes:
        centre: [n, *S].
        radius: [n, *S], not negative.
        unit: unit of rounding of the network's own arithmetic; every bound allows for its errors.
    """

    centre: Tensor
    radius: Tensor
    unit: float

    @classmethod
    def between(cls, low: Tensor, high: Tensor, unit: float) -> Box:
        """Returns the box of the values between two bounds, rounded outwards."""
        low, high = low.double(), high.double()
        radius = (high - low) / 2 + 4 * torch.finfo(torch.float64).eps * torch.maximum(low.abs(), high.abs())
        return cls((low + high) / 2, radius, unit)

    @property
    def low(self) -> Tensor:
        return self.centre - self.radius

    @property
    def high(self) -> Tensor:
        return self.centre + self.radius

    @property
    def largest(self) -> Tensor:
        """Largest absolute values."""
        return self.centre.abs() + self.radius


@singledispatch
def after(module: nn.Module, box: Box) -> Box:
    """Returns a box that holds what the module makes of every value of a box.

    Raises:
        SiteError: bounds of this kind of module are not known.
    """
    raise SiteError(f"bounds of a {type(module).__name__} are not known")


@after.register(nn.Flatten)
@after.register(nn.Unflatten)
@after.register(nn.Identity)
@after.register(nn.Dropout)
@after.register(KeyedDropout)
def _(module: nn.Module, box: Box) -> Box:
    if isinstance(module, nn.Dropout | KeyedDropout):
        return box  # in evaluation mode
    return Box(module(box.centre), module(box.radius), box.unit)


@after.register
def _(module: Normalize, box: Box) -> Box:
    std = module.std.double()
    centre = (box.centre - module.mean.double()) / std
    margin = 4 * box.unit * (box.largest + module.mean.double().abs()) / std.abs()
    return Box(centre, box.radius / std.abs() + margin, box.unit)


@after.register
def _(module: nn.Linear, box: Box) -> Box:
    weight, bias = module.weight.double(), None if module.bias is None else module.bias.double()
    radius = F.linear(box.radius, weight.abs()) + rounding(module, box)
    return Box(F.linear(box.centre, weight, bias), radius, box.unit)


def rounding(module: nn.Linear, box: Box) -> Tensor:
    """Returns a bound of the error of a linear layer in floating point [n, O], in whatever order it adds."""
    bias = None if module.bias is None else module.bias.double().abs()
    return _gamma(module.in_features, box) * F.linear(box.largest, module.weight.double().abs(), bias)


@after.register
def _(module: nn.Conv2d, box: Box) -> Box:
    if module.padding_mode != "zeros":
        raise SiteError(f"bounds of a convolution with padding {module.padding_mode!r} are not known")
    weight, bias = module.weight.double(), None if module.bias is None else module.bias.double()
    convolve = module._conv_forward
    magnitude = convolve(box.largest, weight.abs(), None if bias is None else bias.abs())
    radius = convolve(box.radius, weight.abs(), None) + _gamma(weight[0].numel(), box) * magnitude
    return Box(convolve(box.centre, weight, bias), radius, box.unit)


@after.register
def _(module: nn.AvgPool2d, box: Box) -> Box:
    size = module.kernel_size
    terms = size[0] * size[1] if isinstance(size, tuple) else size**2
    margin = _gamma(terms, box) * module(box.largest)
    return Box(module(box.centre), module(box.radius) + margin, box.unit)


@after.register(nn.ReLU)
@after.register(nn.Sigmoid)
@after.register(nn.Tanh)
@after.register(Heaviside)
@after.register(Sign)
@after.register(Staircase)
def _(module: nn.Module, box: Box) -> Box:
    """An activation that never falls maps the ends of an interval to the ends of its image."""
    margin = 0.0 if isinstance(module, nn.ReLU | Heaviside | Sign) else 8 * box.unit
    low, high = (end + sign * margin * (1 + end.abs()) for end, sign in ((box.low, -1), (box.high, 1)))
    return Box.between(module(low) - margin, module(high) + margin, box.unit)


def _gamma(terms: int, box: Box) -> float:
    """Returns the relative error of a sum of products: n u / (1 - n u) (Higham, section 3.1), with room to spare."""
    n = (terms + 3) * (box.unit + torch.finfo(torch.float64).eps)
    return n / (1 - n)
