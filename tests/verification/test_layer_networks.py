"""Table of networks, part 1: the layers of torch, one in each network, as in the suites of Opacus and BackPACK."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case, Function, check, headed, lanes
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from glr_dist.nn import Dropout, fixed, opened

pytestmark = pytest.mark.montecarlo

JUMPS = {"differences": True, "noise": 1.0}


def swapped(model: nn.Module) -> nn.Module:
    """Applies the remedy `glr_dist.nn.fixed`."""
    return fixed(model)[0]


# ---------------------------------------------------------------- products


def product(layer: nn.Module, x: tuple[int, ...]) -> Case:
    """A layer with weights, which is a site."""
    return Case(lambda: headed(layer, nn.Tanh(), x=x), x, {"sites": [nn.Linear, type(layer)]})


PRODUCTS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Linear": (nn.Linear(4, 4), (4,)),
    "Linear without bias": (nn.Linear(4, 4, bias=False), (4,)),
    "Linear over a sequence": (nn.Linear(3, 2), (4, 3)),
    "Linear over a grid": (nn.Linear(3, 2), (2, 2, 3)),
    "Conv1d": (nn.Conv1d(2, 2, 3, padding=1), (2, 4)),
    "Conv1d same": (nn.Conv1d(2, 2, 3, padding="same"), (2, 4)),
    "Conv1d circular": (nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4)),
    "Conv1d dilated, strided": (nn.Conv1d(2, 2, 2, stride=2, dilation=2), (2, 6)),
    "Conv1d in groups": (nn.Conv1d(4, 2, 2, groups=2), (4, 3)),
    "Conv2d": (nn.Conv2d(1, 2, 3, padding=1), (1, 3, 3)),
    "Conv2d without bias": (nn.Conv2d(1, 2, 2, bias=False), (1, 3, 3)),
    "Conv2d same": (nn.Conv2d(1, 2, 3, padding="same"), (1, 3, 3)),
    "Conv2d same, even kernel": (nn.Conv2d(1, 2, 2, padding="same"), (1, 3, 3)),
    "Conv2d valid": (nn.Conv2d(1, 2, 2, padding="valid"), (1, 3, 3)),
    "Conv2d reflected": (nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 3, 3)),
    "Conv2d replicated": (nn.Conv2d(1, 2, 3, padding=1, padding_mode="replicate"), (1, 3, 3)),
    "Conv2d circular": (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 3, 3)),
    "Conv2d strided, dilated": (nn.Conv2d(1, 2, 2, stride=(2, 1), dilation=(1, 2)), (1, 4, 4)),
    "Conv2d in groups": (nn.Conv2d(4, 4, 2, groups=2), (4, 3, 3)),
    "Conv2d depthwise": (nn.Conv2d(2, 4, 2, groups=2), (2, 3, 3)),
    "Conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 2, 3)),
    "Conv3d in groups, padded": (nn.Conv3d(2, 2, 2, stride=2, padding=1, groups=2), (2, 2, 2, 2)),
    "ConvTranspose1d": (nn.ConvTranspose1d(2, 2, 2, stride=2), (2, 3)),
    "ConvTranspose1d in groups": (nn.ConvTranspose1d(2, 4, 2, groups=2), (2, 3)),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 1, 2, stride=2, output_padding=1), (2, 2, 2)),
    "ConvTranspose2d dilated": (nn.ConvTranspose2d(1, 1, 2, dilation=2), (1, 2, 2)),
    "ConvTranspose3d": (nn.ConvTranspose3d(2, 1, 2), (2, 2, 1, 2)),
    "LayerNorm": (nn.LayerNorm(4), (4,)),
    "PReLU": (nn.PReLU(), (4,)),
}


class Pair(nn.Module):
    """Two different views of x, given to a module of two inputs."""

    def __init__(self, join: nn.Module, *after: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.join, self.after = nn.Linear(4, 3), nn.Linear(4, 3), join, nn.Sequential(*after)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.join(torch.tanh(self.left(x)), torch.tanh(self.right(x))))


# ---------------------------------------------------------------- embeddings

TOKENS = torch.tensor([[1, 2, 2], [0, 3, 4], [4, 4, 1]])


class Bag(nn.Module):
    def __init__(self, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.bag, self.head, self.weights = nn.EmbeddingBag(5, 4, **options), nn.Linear(4, 3), weights

    def forward(self, tokens: Tensor) -> Tensor:
        weights = tokens.to(self.head.weight) + 0.5 if self.weights else None
        return self.head(torch.tanh(self.bag(tokens, per_sample_weights=weights)))


EMBEDDINGS: dict[str, Case] = {
    "Embedding": Case(lambda: headed(nn.Embedding(5, 2), nn.Tanh(), x=TOKENS), TOKENS),
    "Embedding as a site": Case(
        lambda: headed(nn.Embedding(5, 2), nn.Tanh(), x=TOKENS), TOKENS, {"sites": [nn.Embedding, nn.Linear]}
    ),
    "Embedding with padding": Case(lambda: headed(nn.Embedding(5, 2, padding_idx=4), x=TOKENS), TOKENS),
    "Embedding renormed": Case(lambda: headed(nn.Embedding(5, 2, max_norm=1.0), nn.Tanh(), x=TOKENS), TOKENS),
    "Embedding by frequency": Case(
        lambda: headed(nn.Embedding(5, 2, scale_grad_by_freq=True), x=TOKENS),
        TOKENS,
        says=r"'0' \(Embedding\) scales its gradient by the frequency.*scale_grad_by_freq=False",
        remedy=lambda model: headed(nn.Embedding(5, 2), x=TOKENS),
    ),
    "Embedding before a sign": Case(
        lambda: headed(nn.Embedding(5, 2, padding_idx=4), Function(torch.sign), x=TOKENS),
        TOKENS,
        JUMPS,
        says=r"'0\.weight' acts on the logits of site '3' through a jump.*'0' \(Embedding\) a site too",
        remedied={"sites": [nn.Linear, nn.Embedding]},
    ),
    "Embedding sparse": Case(lambda: headed(nn.Embedding(5, 2, sparse=True), nn.Tanh(), x=TOKENS), TOKENS),
    "EmbeddingBag mean": Case(Bag, TOKENS),
    "EmbeddingBag sum": Case(lambda: Bag(mode="sum"), TOKENS),
    "EmbeddingBag max": Case(lambda: Bag(mode="max"), TOKENS),
    "EmbeddingBag weighted": Case(lambda: Bag(True, mode="sum"), TOKENS),
}

# ---------------------------------------------------------------- norms


def after_linear(*modules: nn.Module, width: int = 4, **options: Any) -> Case:
    """Modules between a linear site and the head, for inputs of four features."""
    return Case(lambda: headed(nn.Linear(4, width), *modules, x=(4,)), (4,), options)


def in_grid(*modules: nn.Module, **options: Any) -> Case:
    """Modules between a convolution of two channels on a 4 by 4 grid, and the head."""
    return Case(lambda: headed(nn.Conv2d(1, 2, 1), *modules, x=(1, 4, 4)), (1, 4, 4), options)


def unsqueezed(*modules: nn.Module, shape: tuple[int, ...], **options: Any) -> Case:
    """Modules on the logits of a linear site in another shape."""
    width = torch.Size(shape).numel()
    return after_linear(nn.Unflatten(1, shape), *modules, width=width, **options)


NORMS: dict[str, Case] = {
    "LayerNorm before a kink": after_linear(nn.LayerNorm(4), nn.ReLU()),
    "LayerNorm without affine": after_linear(nn.LayerNorm(4, elementwise_affine=False)),
    "LayerNorm over a grid": in_grid(nn.LayerNorm([4, 4])),
    "GroupNorm": in_grid(nn.GroupNorm(2, 2)),
    "InstanceNorm1d": unsqueezed(nn.InstanceNorm1d(2, affine=True), shape=(2, 3)),
    "InstanceNorm2d": in_grid(nn.InstanceNorm2d(2, affine=True)),
    "InstanceNorm3d": unsqueezed(nn.InstanceNorm3d(1, affine=True), shape=(1, 2, 2, 2)),
    "InstanceNorm with running statistics": Case(
        lambda: headed(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2, affine=True, track_running_stats=True), x=(1, 4, 4)),
        (1, 4, 4),
        says=r"'1' \(InstanceNorm2d\) changes its buffer '1\.running_mean'.*evaluation mode",
        remedy=nn.Module.eval,
    ),
    "RMSNorm": after_linear(nn.RMSNorm(4), nn.Tanh()),
    "LocalResponseNorm": in_grid(nn.LocalResponseNorm(2)),
}
for _norm, _before, _x in (
    (nn.BatchNorm1d(4), nn.Linear(4, 4), (4,)),
    (nn.BatchNorm2d(2), nn.Conv2d(1, 2, 1), (1, 3, 3)),
    (nn.BatchNorm3d(2), nn.Conv3d(1, 2, 1), (1, 2, 2, 2)),
):
    for _name, _remedy in (("fixed", swapped), ("eval", nn.Module.eval)):
        NORMS[f"{type(_norm).__name__}, {_name}"] = Case(
            lambda norm=_norm, before=_before, x=_x: headed(before, norm, nn.Tanh(), x=x),
            _x,
            says="'1' is a BatchNorm.d in training mode, which couples the examples",
            remedy=_remedy,
        )

# ---------------------------------------------------------------- activations

SMOOTH: list[nn.Module] = [
    *(nn.ELU(), nn.CELU(), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.Sigmoid(), nn.LogSigmoid(), nn.SiLU(), nn.Mish()),
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardswish(), nn.PReLU(), nn.PReLU(4)),
    *(nn.Softplus(), nn.Softshrink(), nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.Softmax(1), nn.LogSoftmax(1)),
    *(nn.Softmin(1), nn.GLU()),
]
JUMPING: list[nn.Module] = [nn.Hardshrink(), nn.Threshold(0.1, 1.0)]
ACTIVATIONS: dict[str, Case] = {
    **{str(unit): after_linear(unit) for unit in SMOOTH},
    **{str(unit): after_linear(unit, **JUMPS) for unit in JUMPING},
    "Softmax2d": unsqueezed(nn.Softmax2d(), shape=(2, 1, 2)),
    "RReLU": Case(
        lambda: headed(nn.Linear(4, 4), nn.RReLU()),
        says=r"'1' \(RReLU\) draws from torch's global generator.*evaluation mode",
        remedy=nn.Module.eval,
    ),
}

# ---------------------------------------------------------------- pooling, shapes

SHAPES: dict[str, Case] = {
    "MaxPool1d": unsqueezed(nn.MaxPool1d(2), shape=(2, 4)),
    "MaxPool2d": in_grid(nn.MaxPool2d(2)),
    "MaxPool3d": unsqueezed(nn.MaxPool3d(2), shape=(1, 2, 2, 2)),
    "AvgPool1d": unsqueezed(nn.AvgPool1d(2), shape=(2, 4)),
    "AvgPool2d": in_grid(nn.AvgPool2d(2)),
    "AvgPool3d": unsqueezed(nn.AvgPool3d(2), shape=(1, 2, 2, 2)),
    "AdaptiveMaxPool2d": in_grid(nn.AdaptiveMaxPool2d(2)),
    "AdaptiveAvgPool1d": unsqueezed(nn.AdaptiveAvgPool1d(2), shape=(2, 4)),
    "AdaptiveAvgPool2d": in_grid(nn.AdaptiveAvgPool2d(1)),
    "LPPool1d": unsqueezed(nn.LPPool1d(2, 2), shape=(2, 4)),
    "LPPool2d": in_grid(nn.LPPool2d(2, 2)),
    "FractionalMaxPool2d": Case(
        lambda: headed(nn.Conv2d(1, 2, 1), nn.FractionalMaxPool2d(2, 2), x=(1, 4, 4)),
        (1, 4, 4),
        says=r"'1' \(FractionalMaxPool2d\) draws from torch's global generator",
        remedy=lambda model: headed(model[0], nn.AdaptiveMaxPool2d(2), x=(1, 4, 4)),
    ),
    "MaxUnpool2d": unsqueezed(
        Function(lambda x: nn.MaxUnpool2d(2)(*nn.MaxPool2d(2, return_indices=True)(x))), shape=(1, 2, 2), **JUMPS
    ),
    "ZeroPad2d": in_grid(nn.ZeroPad2d(1)),
    "ConstantPad2d": in_grid(nn.ConstantPad2d(1, 2.0)),
    "ReflectionPad2d": in_grid(nn.ReflectionPad2d(1)),
    "ReplicationPad2d": in_grid(nn.ReplicationPad2d(1)),
    "CircularPad2d": in_grid(nn.CircularPad2d(1)),
    "Unflatten": unsqueezed(nn.Tanh(), shape=(2, 2)),
    "Upsample nearest": in_grid(nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Tanh()),
    "Upsample bilinear": in_grid(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Tanh()),
    "PixelShuffle": unsqueezed(nn.PixelShuffle(2), nn.Tanh(), shape=(4, 1, 2)),
    "PixelUnshuffle": in_grid(nn.PixelUnshuffle(2), nn.Tanh()),
    "ChannelShuffle": unsqueezed(nn.ChannelShuffle(2), nn.Conv2d(4, 2, 1), shape=(4, 1, 2)),
    "Unfold": in_grid(nn.Unfold(2, stride=2), nn.Tanh()),
    "Fold": unsqueezed(nn.Fold((2, 2), 2), nn.Tanh(), shape=(4, 1)),
    "Bilinear": Case(lambda: Pair(nn.Bilinear(3, 3, 2), nn.Tanh(), nn.Linear(2, 3))),
    "Bilinear as a site": Case(lambda: Pair(nn.Bilinear(3, 3, 3)), options={"sites": [nn.Linear, nn.Bilinear]}),
    "CosineSimilarity": Case(lambda: Pair(nn.CosineSimilarity(1), Function(lambda x: 4 * x[:, None]), nn.Linear(1, 3))),
    "PairwiseDistance": Case(lambda: Pair(nn.PairwiseDistance(keepdim=True), nn.Linear(1, 3))),
}

# ---------------------------------------------------------------- dropout


def dropped(dropout: nn.Module, shape: tuple[int, ...]) -> Case:
    return Case(
        lambda: headed(nn.Linear(4, torch.Size(shape).numel()), nn.Unflatten(1, shape), dropout, nn.Tanh()),
        says=rf"'2' \({type(dropout).__name__}\) draws from torch's global generator",
        remedy=swapped,
    )


DROPOUTS: dict[str, Case] = {
    "Dropout": dropped(nn.Dropout(0.3), (4,)),
    "Dropout1d": dropped(nn.Dropout1d(0.3), (3, 2)),
    "Dropout2d": dropped(nn.Dropout2d(0.3), (3, 1, 2)),
    "Dropout3d": dropped(nn.Dropout3d(0.3), (3, 1, 1, 2)),
    "AlphaDropout": dropped(nn.AlphaDropout(0.3), (4,)),
    "FeatureAlphaDropout": dropped(nn.FeatureAlphaDropout(0.3), (3, 2)),
    "Dropout in evaluation mode": Case(lambda: headed(nn.Linear(4, 4), nn.Dropout(0.3), nn.Tanh()).eval()),
    "functional dropout": Case(
        lambda: headed(nn.Linear(4, 4), Function(nn.functional.dropout)),
        says=r"'1' \(Function\) draws from torch's global generator: use a keyed module, such as glr_dist.nn.Dropout",
        remedy=lambda model: headed(model[0], Dropout(0.5)),
    ),
    "scaled noise of one's own": Case(
        lambda: headed(nn.Linear(4, 4), Function(lambda x: x * (1 + torch.randn_like(x)))),
        says=r"'1' \(Function\) draws from torch's global generator",
        remedy=lambda model: headed(model[0], Dropout(0.5)),
    ),
}

# ---------------------------------------------------------------- recurrent layers and attention


class Last(nn.Module):
    """The last output of a recurrent module, and a head."""

    def __init__(self, inner: nn.Module, features: int) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0][:, -1])


class Attending(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(2, 4), nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x)[0].mean(1))


class Stepped(nn.Module):
    """A cell of torch's over time."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.head(h[0] if isinstance(h, tuple) else h)


def recurrent(kind: type[nn.RNNBase], directions: int = 1, **options: Any) -> nn.Module:
    return Last(kind(2, 3, batch_first=True, bidirectional=directions == 2, **options), 3 * directions)


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, **options)
    return nn.Sequential(nn.Linear(2, 4), layer, nn.Flatten(), nn.Linear(8, 3))


HIDDEN = r"'attention\.out_proj' ran 0 times.*glr_dist\.nn\.opened\(model\)"
SEQUENCE: dict[str, Case] = {
    f"{kind.__name__}{', ' if text else ''}{text}, {name}": Case(
        lambda kind=kind, options=options, change=change: change(recurrent(kind, **options)),
        (2, 2),
        {"samples": 1000, "copies": 16},
    )
    for kind in (nn.RNN, nn.GRU, nn.LSTM)
    for text, options in (("", {}), ("2 layers", {"num_layers": 2}), ("both directions", {"directions": 2}))
    for name, change in (("inside one segment", lambda model: model), ("opened", opened))
}
SEQUENCE |= {
    "RNNCell": Case(lambda: opened(Stepped(nn.RNNCell(2, 3))), (2, 2)),
    "GRUCell": Case(lambda: opened(Stepped(nn.GRUCell(2, 3))), (2, 2)),
    "LSTMCell": Case(lambda: opened(Stepped(nn.LSTMCell(2, 3))), (2, 2)),
    "LSTM with dropout": Case(
        lambda: recurrent(nn.LSTM, num_layers=2, dropout=0.3),
        (2, 2),
        says=r"'inner' \(LSTM\) draws from torch's global generator",
        remedy=swapped,
    ),
    "MultiheadAttention": Case(Attending, (2, 2), {"noise": 0.2}, says=HIDDEN, remedy=opened),
    "MultiheadAttention left out": Case(
        Attending, (2, 2), {"noise": 0.2}, says=HIDDEN, remedied={"site_names": ["*", "!attention.out_proj"]}
    ),
    "MultiheadAttention, key bias": Case(
        lambda: Attending(add_bias_kv=True, add_zero_attn=True), (2, 2), {"noise": 0.2}, says=HIDDEN, remedy=opened
    ),
    "TransformerEncoderLayer": Case(
        lambda: encoder(),
        (2, 2),
        {"noise": 0.2},
        says=r"draws from torch's global generator|ran 0 times",
        remedy=swapped,
    ),
    "TransformerEncoderLayer, norm first": Case(
        lambda: encoder(norm_first=True, dropout=0.0, activation="gelu"),
        (2, 2),
        {"noise": 0.2},
        says=r"'1\.self_attn\.out_proj' ran 0 times.*glr_dist\.nn\.opened\(model\)",
        remedy=opened,
    ),
    "TransformerEncoderLayer in evaluation mode": Case(
        lambda: encoder().eval(),
        (2, 2),
        {"noise": 0.2},
        says=r"ran 0 times.*glr_dist\.nn\.opened\(model\)",
        remedy=opened,
    ),
}

# ---------------------------------------------------------------- parametrized layers


def normalized(*modules: nn.Module, says: str | None = None, **options: Any) -> Case:
    return Case(lambda: nn.Sequential(*modules, nn.Tanh(), nn.Linear(4, 3)), says=says, **options)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def symmetric() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3))


PARAMETRIZED: dict[str, Case] = {
    "weight norm": Case(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))
    ),
    "weight norm by a hook": Case(lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))),
    "spectral norm": Case(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)),
        says=r"changes its buffer .*evaluation mode",
        remedy=nn.Module.eval,
    ),
    "spectral norm by a hook": Case(
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)),
        says=r"'0' \(Linear\) changes its buffer '0\.weight_[uv]'.*evaluation mode",
        remedy=nn.Module.eval,
    ),
    "orthogonal weight": Case(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))
    ),
    "symmetric weight": Case(symmetric),
    "pruned weight": Case(
        lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.4), nn.Tanh(), nn.Linear(4, 3))
    ),
    "pruned convolution": Case(
        lambda: nn.Sequential(
            prune.random_structured(nn.Conv2d(1, 2, 2), "weight", 0.5, dim=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        ),
        (1, 3, 3),
    ),
}

CASES: dict[str, Case] = {
    **{name: product(*values) for name, values in PRODUCTS.items()},
    **{
        f"{name} inside a segment": Case(lambda layer=layer, x=x: headed(layer, nn.Tanh(), x=x), x)
        for name, (layer, x) in PRODUCTS.items()
        if isinstance(layer, (nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d))
    },
    **EMBEDDINGS,
    **NORMS,
    **ACTIVATIONS,
    **SHAPES,
    **DROPOUTS,
    **SEQUENCE,
    **PARAMETRIZED,
}


# Longer than the others.
LONG = {
    "Linear",
    "Embedding before a sign",
    "LayerNorm over a grid",
    "GroupNorm",
    "InstanceNorm2d",
    "Threshold(threshold=0.1, value=1.0)",
    "ZeroPad2d",
    "ConstantPad2d",
    "CircularPad2d",
    "Unfold",
    "GRU, 2 layers, opened",
    "GRU, both directions, opened",
    "TransformerEncoderLayer",
    "TransformerEncoderLayer, norm first",
    "TransformerEncoderLayer in evaluation mode",
    "Bilinear",
    "MultiheadAttention, key bias",
    "LocalResponseNorm",
    "InstanceNorm with running statistics",
    "LSTM, 2 layers, opened",
    "BatchNorm2d, fixed",
    "Conv2d in groups",
    "ReflectionPad2d",
    "InstanceNorm3d",
    "GRUCell",
    "Upsample nearest",
    "LSTM with dropout",
    "ReplicationPad2d",
    "LSTM, both directions, opened",
    "MultiheadAttention",
    "ConvTranspose2d",
    "PixelUnshuffle",
    "PReLU(num_parameters=1)",
    "GRU, opened",
    "Conv2d same, even kernel",
    "RNN, 2 layers, opened",
    "MaxUnpool2d",
    "RNN, both directions, opened",
    "Hardshrink(0.5)",
    "LSTM, opened",
    "LSTM, 2 layers, inside one segment",
    "LSTM, both directions, inside one segment",
    "Conv1d dilated, strided inside a segment",
    "Conv2d strided, dilated",
    "EmbeddingBag max",
    "Bilinear as a site",
    "ConvTranspose1d in groups",
    "GRU, both directions, inside one segment",
    "CosineSimilarity",
}


@pytest.mark.parametrize("case", lanes(CASES, LONG))
def test_a_layer_gets_its_gradient_or_a_remedy_that_works(case: str) -> None:
    check(CASES[case])
