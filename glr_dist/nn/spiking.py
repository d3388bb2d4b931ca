"""Spiking networks of leaky integrate-and-fire neurons, without surrogate gradients.

A network runs layer by layer: a layer passes the spikes of all T time steps to the next one, so that each layer is one
block of the chain, and a redraw skips the layers before its site. The image is a constant input current; the first
layer runs once, and its noise is constant over time. A later layer applies its weights to all time steps in one call:
one site with T·D units. With T calls, each a site, the same number of redraws gave about 1.5 times the variance, and
took about twice as long (64-32-32-10 on digits, T = 10, initial weights, 16 estimates).

The state of the neurons begins at 0 in each call, and nothing is kept between calls.

Shapes: N examples, T time steps, *S the shape of a layer, currents and spikes [N, T, *S].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glr_dist.nn.arguments import check_between, check_counts, check_image, check_widths
from glr_dist.nn.builder import configured
from glr_dist.nn.initial import initialised


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons: spikes [N, T, *S] of input currents [N, T, *S].

    u_t = β u_{t-1} + z_t - s_{t-1} and s_t = 1 where u_t > 1, else 0, from u_0 = s_0 = 0. A spike lowers the potential
    by the threshold, 1 (soft reset). No gradient passes: autograd sees a constant.

    Args:
        leak: β, the share of its potential that a neuron keeps per step, in [0, 1].

    Raises:
        ConfigError: β is outside [0, 1].
    """

    def __init__(self, leak: float = 0.9) -> None:
        super().__init__()
        check_between("LIF", 0, 1, leak=leak)
        self.leak = leak

    def forward(self, x: Tensor) -> Tensor:
        currents = x.detach().unbind(1)
        spikes = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        potential = torch.zeros_like(currents[0])
        for z, s in zip(currents, spikes.unbind(1), strict=True):
            potential = potential.mul_(self.leak).add_(z)
            potential.sub_(torch.gt(potential, 1, out=s))
        return spikes

    def extra_repr(self) -> str:
        return f"leak={self.leak}"


class Constant(nn.Module):
    """Repeats currents [N, *S] over T time steps, [N, T, *S]."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1).expand(x.shape[0], self.steps, *x.shape[1:])

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class Rate(nn.Module):
    """Mean of spikes [N, T, *S] over time, flattened to [N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1).flatten(1)


def spiking_mlp(
    shape: Sequence[int],
    classes: int,
    *,
    hidden: Sequence[int] = (100,),
    steps: int = 10,
    leak: float = 0.9,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a multilayer perceptron of spiking neurons, [N, *shape] -> [N, classes].

    The firing rates of the last hidden layer over T steps are the inputs of a linear layer.

    Args:
        shape: shape of an example.
        classes: number of outputs.
        hidden: number of neurons of each hidden layer, at least one layer.
        steps: T, number of time steps.
        leak: β, the share of its potential that a neuron keeps per step.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        Rueckauer et al., Conversion of Continuous-Valued Deep Networks to Efficient Event-Driven Networks for Image
        Classification, Frontiers in Neuroscience 2017 (constant input currents, soft reset).
    """
    check_widths("spiking_mlp", hidden=hidden)
    check_counts("spiking_mlp", steps=steps, layers=len(hidden))
    widths = [torch.Size(shape).numel(), *hidden]

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers.append(nn.Linear(fan_in, fan_out))
            if len(layers) == 2:
                layers.append(Constant(steps))
            layers.append(LIF(leak))
        return nn.Sequential(*layers, Rate(), nn.Linear(widths[-1], classes))

    return initialised(build, generator)


class ConvOverTime(nn.Conv2d):
    """A convolution of each time step, [N, T, C, H, W] -> [N, T, O, H', W']; takes the arguments of `nn.Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        each = super().forward(input.flatten(0, 1))
        return each.reshape(*input.shape[:2], *each.shape[1:])


def spiking_cnn(
    shape: Sequence[int],
    classes: int,
    *,
    channels: Sequence[int] = (8, 16),
    steps: int = 10,
    leak: float = 0.9,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a convolutional network of spiking neurons, [N, C, H, W] -> [N, classes].

    Each layer is a convolution of 3 x 3 with neurons behind it; average pooling halves the sides of their spikes.

    Args:
        shape: shape (C, H, W) of an image; its sides are at least 2 to the power of the number of layers.
        classes: number of outputs.
        channels: channels of each layer, at least one layer.
        steps: T, number of time steps.
        leak: β, the share of its potential that a neuron keeps per step.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        As `spiking_mlp`.
    """
    check_widths("spiking_cnn", channels=channels)
    check_counts("spiking_cnn", steps=steps, layers=len(channels))
    pixels, height, width = check_image("spiking_cnn", shape, 2 ** len(channels))
    widths = [pixels, *channels]
    features = channels[-1] * (height >> len(channels)) * (width >> len(channels))

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            if layers:
                layers.append(ConvOverTime(fan_in, fan_out, 3, padding=1))
            else:
                layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), Constant(steps)]
            layers += [LIF(leak), nn.AvgPool3d((1, 2, 2))]
        return nn.Sequential(*layers, Rate(), nn.Linear(features, classes))

    return initialised(build, generator)


build_spiking_mlp, build_spiking_cnn = configured(spiking_mlp), configured(spiking_cnn)
