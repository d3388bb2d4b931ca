"""One small network for images of 8 x 8 pixels of each kind that the package builds, as the section `model`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from ray import cloudpickle
from torch import Tensor, nn

import glr_dist

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors' processes cannot import a test


def ranked(values: np.ndarray) -> np.ndarray:
    """Ranks of the values of each example [N, D], in quarters: a function of numpy without a derivative."""
    return values.argsort(1).argsort(1).astype(np.float32) // 4


def padded_lenet5(shape: Sequence[int], classes: int) -> nn.Module:
    channels, height, width = shape
    return nn.Sequential(nn.ZeroPad2d(2), *glr_dist.nn.lenet5((channels, height + 4, width + 4), classes))


def normalized(classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(27, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes)),
    )


def boxed(classes: int) -> nn.Module:
    box = glr_dist.nn.BlackBox(ranked, shape=(16,))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), box, nn.Linear(16, classes))


class Rounded(nn.Linear):
    """Rounds its weights to quarters, with a straight-through derivative, which is not that of what it computes."""

    def forward(self, input: Tensor) -> Tensor:
        rounded = (4 * self.weight).round() / 4
        return nn.functional.linear(input, self.weight + (rounded - self.weight).detach(), self.bias)


def straight_through(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), Rounded(64, 8), nn.Tanh(), nn.Linear(8, classes))


KINDS = {
    "GRU": "{name: gru, units: 4}",
    "spiking MLP": "{name: spiking_mlp, hidden: [6, 5], steps: 3}",
    "spiking CNN": "{name: spiking_cnn, channels: [2, 2], steps: 2}",
    "ViT": "{name: vit, patch: 4, width: 4, depth: 1, heads: 2}",
    "quantised MLP": "{name: quantised_mlp, hidden: [6, 5], bits: 2}",
    "mixture of experts": "{name: mixture_of_experts, experts: 2, hidden: 4}",
    "vector quantisation": "{name: vq_mlp, hidden: 6, groups: 2, size: 2, codes: 3}",
    "ResNet-8": "{name: resnet8, width: 2}",
    "LeNet-5": "{name: 'kinds:padded_lenet5'}",
    "VGG-8": "{name: vgg8, width: 2}",
    "shared batch norm": "{name: 'kinds:normalized', fixed: shared}",
    "black box": "{name: 'kinds:boxed'}",
}
