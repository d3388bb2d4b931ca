"""Table of networks, part 4: the families of torchvision, shrunk, each refused before `fixed` and right after it.

Almost all layers are sites in the verification; the slopes are those of the first layer and of the head, with noise at
the head, since a wide layer needs more redraws than a test has. The largest families have a shorter test (`LARGE`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import check_slopes_of
from torch import nn
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    GoogLeNet,
    Inception3,
    MaxVit,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
    SwinTransformer,
    VisionTransformer,
    alexnet,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import VGG, make_layers

from glr_dist import GLR, SiteError
from glr_dist.nn import fixed

pytestmark = [pytest.mark.montecarlo, pytest.mark.product]


def with_small_head(model: nn.Module, features: int) -> nn.Module:
    """Replaces the classifier of a network whose layers are too wide to shrink by an argument."""
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Dropout(0.02), nn.Linear(features, 8), nn.ReLU(True), nn.Linear(8, 3))
    return model


def narrow_mobilenet() -> nn.Module:
    setting = partial(InvertedResidualConfig, width_mult=1)
    blocks = [setting(8, 3, 8, 8, True, "RE", 2, 1), setting(8, 3, 16, 16, False, "HS", 2, 1)]
    return MobileNetV3(blocks, 16, num_classes=3)


def narrow_efficientnet() -> nn.Module:
    setting = partial(MBConvConfig, width_mult=1, depth_mult=1)
    return EfficientNet([setting(1, 3, 1, 8, 8, 1), setting(2, 3, 2, 8, 16, 2)], 0.2, 0.2, 3, last_channel=16)


def old(build: Callable[..., nn.Module]) -> nn.Module:
    return build(num_classes=3, aux_logits=False, init_weights=False, dropout=0.0)


# name: network, width of the images
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], 3), 32),
    "resnext": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], 3, groups=4, width_per_group=4), 32),
    "wide_resnet": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], 3, width_per_group=16), 32),
    "densenet": (lambda: DenseNet(4, (1, 1, 2), 8, 2, 0.0, 3), 32),
    "vgg": (lambda: with_small_head(VGG(make_layers([8, "M", 8, "M"], batch_norm=True), init_weights=False), 8), 8),
    "alexnet": (lambda: with_small_head(alexnet(), 256), 64),
    "squeezenet": (lambda: SqueezeNet("1_1", 3, 0.02), 32),
    "mobilenet_v2": (lambda: MobileNetV2(3, 0.1, dropout=0.0), 32),
    "mobilenet_v3": (narrow_mobilenet, 16),
    "shufflenet": (lambda: ShuffleNetV2([1, 1, 1], [4, 8, 8, 8, 16], 3), 32),
    "efficientnet": (narrow_efficientnet, 16),
    "mnasnet": (lambda: MNASNet(0.1, 3, 0.0), 32),
    "googlenet": (lambda: old(GoogLeNet), 32),
    "inception": (lambda: old(Inception3), 75),
    "regnet": (lambda: RegNet(BlockParams.from_init_params(4, 8, 8.0, 2.0, 8), 3, 8), 32),
    "convnext": (lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.2, 0.5, num_classes=3), 16),
    "vit": (lambda: VisionTransformer(8, 4, 1, 2, 8, 8, 0.1, 0.1, 3), 8),
    "swin": (lambda: SwinTransformer([4, 4], 8, [2, 2], [1, 2], [2, 2], num_classes=3), 16),
    "maxvit": (lambda: MaxVit((16, 16), 8, 2, [8, 16], [1, 1], 4, 0.2, num_classes=3), 16),
}
# Functions compute the products of these layers.
SITES = {"swin": ("*", "!*.attn.qkv", "!*.attn.proj")}
# Their slopes take minutes each, and their layers are those of other families: only their refusal, their summary and
# finite gradients at two sites are checked.
LARGE = ("mobilenet_v2", "mnasnet", "googlenet", "inception")


def prepared(family: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, str, str]:
    """Checks that a family is refused as it is; returns it fixed, a batch, and its first and last layer's names."""
    build, width = FAMILIES[family]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = build().double()
    x, y = torch.randn(3, 3, width, width, dtype=torch.float64), torch.tensor([0, 0, 1])
    with pytest.raises(SiteError, match=r"in training mode|global generator|ran 0 times"):
        GLR(model, 0.5, copies=2).estimate(x, y)
    model, _ = fixed(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return model, x, y, layers[0], layers[-1]


def train_only(model: nn.Module, *layers: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] in layers)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in LARGE])
def test_a_family_of_torchvision_is_right_once_it_is_fixed(family: str) -> None:
    model, x, y, first, head = prepared(family)
    assert GLR(model, 0.1, copies=2, site_names=SITES.get(family, ("*",))).estimate(x, y).isfinite()
    train_only(model, first, head)
    few = {"repeats": 4, "samples": 60} if x.shape[-1] > 16 else {"repeats": 16, "samples": 1500}
    check_slopes_of(model, x, y, site_names=[head], noise=0.1, copies=6, **few)


@pytest.mark.parametrize("family", LARGE)
def test_a_large_family_of_torchvision_runs_once_it_is_fixed(family: str) -> None:
    model, x, y, first, head = prepared(family)
    layers = sum(isinstance(module, (nn.Linear, nn.Conv2d)) for module in model.modules())
    assert len(GLR(model, 0.1).summary(x).rows) == layers, "every layer can be a site"
    train_only(model, first, head)
    grads = GLR(model, 0.1, copies=2, site_names=[first, head]).gradients(x, y).grads
    assert set(grads) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(grad.isfinite().all() and grad.any() for grad in grads.values())
