"""Convolutional networks: LeNet-5, VGG-8 and ResNet-8.

Norms have no parameters of their own (`affine=False`), so that any activation may follow: before a threshold, a norm's
weight would act through a jump. Shapes: images [N, C, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glr_dist.nn.arguments import check_counts, check_image
from glr_dist.nn.builder import configured
from glr_dist.nn.initial import initialised
from glr_dist.registry import ACTIVATIONS


class HalvingPool2d(nn.AvgPool2d):
    """Averages squares of 2 x 2 pixels, [N, C, H, W] -> [N, C, H // 2, W // 2].

    The sum of four strided views gives the bits of `nn.AvgPool2d(2)` in half of its time or less on a CPU, where
    pooling was a quarter of LeNet-5's step.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        top, bottom = x[..., 0:height:2, :width], x[..., 1:height:2, :width]
        return (top[..., ::2] + top[..., 1::2] + bottom[..., ::2] + bottom[..., 1::2]) * 0.25


def lenet5(
    shape: Sequence[int], classes: int, *, activation: str = "relu", generator: torch.Generator | None = None
) -> nn.Sequential:
    """Returns LeNet-5 with average pooling after the activations, [N, C, H, W] -> [N, classes].

    Args:
        shape: shape (C, H, W) of an image, at least 12 x 12 pixels; 28 x 28 gives the layers of the paper.
        classes: number of outputs.
        activation: a name of `ACTIVATIONS`, after each layer but the last.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proceedings of the
        IEEE 1998.
    """
    channels, height, width = check_image("lenet5", shape, 12)
    act = ACTIVATIONS[activation]
    features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)

    def build() -> nn.Sequential:
        convolutions = [
            *(nn.Conv2d(channels, 6, 5, padding=2), act(), HalvingPool2d()),
            *(nn.Conv2d(6, 16, 5), act(), HalvingPool2d()),
        ]
        dense = [nn.Linear(features, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, classes)]
        return nn.Sequential(*convolutions, nn.Flatten(), *dense)

    return initialised(build, generator)


def vgg8(
    shape: Sequence[int],
    classes: int,
    *,
    width: int = 32,
    activation: str = "relu",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a VGG network of six convolutions and two dense layers with GroupNorm, [N, C, H, W] -> [N, classes].

    Args:
        shape: shape (C, H, W) of an image, at least 8 x 8 pixels.
        classes: number of outputs.
        width: channels of the first two convolutions; the next pairs have two and four times as many, the dense layer
            has eight times as many units.
        activation: a name of `ACTIVATIONS`, after each layer but the last.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
    """
    check_counts("vgg8", width=width)
    channels, height, width_ = check_image("vgg8", shape, 8)
    act = ACTIVATIONS[activation]
    widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(zip([channels, *widths], widths, strict=False)):
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), _norm(fan_out), act()]
            if index % 2:
                layers.append(nn.MaxPool2d(2))
        features = widths[-1] * (height // 8) * (width_ // 8)
        dense = [nn.Linear(features, 8 * width), act(), nn.Linear(8 * width, classes)]
        return nn.Sequential(*layers, nn.Flatten(), *dense)

    return initialised(build, generator)


class Residual(nn.Module):
    """Adds two convolutions to their input: [N, C, H, W] -> [N, O, H / s, W / s] for stride s.

    The shortcut has no parameters: it takes every s-th pixel, and fills new channels with zeros.

    Args:
        channels: C.
        outputs: O, at least C.
        stride: s.
        activation: a name of `ACTIVATIONS`.
    """

    def __init__(self, channels: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.stride, self.more = stride, outputs - channels
        self.branch = nn.Sequential(
            *(nn.Conv2d(channels, outputs, 3, stride, padding=1), _norm(outputs), ACTIVATIONS[activation]()),
            *(nn.Conv2d(outputs, outputs, 3, padding=1), _norm(outputs)),
        )
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        outputs: Tensor = self.activation(self.branch(x) + shortcut)
        return outputs


def resnet8(
    shape: Sequence[int],
    classes: int,
    *,
    width: int = 16,
    activation: str = "relu",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a residual network of 8 layers with GroupNorm, [N, C, H, W] -> [N, classes].

    Args:
        shape: shape (C, H, W) of an image, at least 5 x 5 pixels.
        classes: number of outputs.
        width: channels of the first stage; the next stages have two and four times as many.
        activation: a name of `ACTIVATIONS`.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016 (section 4.2 with n = 1);
        Wu and He, Group Normalization, ECCV 2018.
    """
    check_counts("resnet8", width=width)
    channels, _, _ = check_image("resnet8", shape, 5)

    def build() -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1), _norm(width), ACTIVATIONS[activation]()),
            Residual(width, width, 1, activation),
            Residual(width, 2 * width, 2, activation),
            Residual(2 * width, 4 * width, 2, activation),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)),
        )

    return initialised(build, generator)


def _norm(channels: int) -> nn.GroupNorm:
    """Returns a GroupNorm of up to 8 groups of 2 channels or more; alone in its group, a channel loses its bias."""
    groups = next(groups for groups in (8, 4, 2, 1) if channels % (2 * groups) == 0 or groups == 1)
    return nn.GroupNorm(groups, channels, affine=False)


build_lenet5, build_vgg8, build_resnet8 = configured(lenet5), configured(vgg8), configured(resnet8)
