"""`fixed`: what it replaces, what it reports, and that the engine trains the result."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, VisionTransformer, resnet18
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import StochasticDepth

from glr_dist import GLR, SiteError
from glr_dist import nn as own
from glr_dist.execution.inline import Inline
from glr_dist.nn import Change, fixed


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [
        *[(64, None, 8), (16, None, 2), (10, None, 1), (1, None, 1), (512, None, 32), (24, None, 3), (60, None, 6)],
        *[(64, 32, 32), (24, 32, 24), (10, 4, 2), (7, 3, 1), (8, 1, 1)],
    ],
)
def test_batch_norm_becomes_group_norm(channels: int, groups: int | None, expected: int) -> None:
    for kind in (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        norm = kind(channels, eps=1e-3).double()
        norm.weight.data.normal_()
        norm.bias.requires_grad_(False)
        new, changes = fixed(norm, groups)
        assert type(new) is nn.GroupNorm
        assert (new.num_groups, new.num_channels, new.eps, new.affine) == (expected, channels, 1e-3, True)
        assert torch.equal(new.weight, norm.weight)
        assert new.weight is not norm.weight
        assert not new.bias.requires_grad
        assert len(changes) == 1
        assert changes[0].note == "affine parameters kept, running statistics dropped"


def test_batch_norm_of_features_keeps_two_values_in_a_group() -> None:
    """A group of one value of [N, C] would be normalized to 0."""
    new, _ = fixed(nn.BatchNorm1d(8), groups=8)
    assert new.num_groups == 4
    assert new(torch.randn(3, 8)).std() > 0.5
    assert fixed(nn.BatchNorm1d(8))[0](torch.randn(3, 8, 5)).shape == (3, 8, 5)
    assert fixed(nn.BatchNorm2d(8, affine=False))[0].weight is None
    alone = nn.BatchNorm1d(1)
    new, changes = fixed(alone)
    assert type(new) is nn.BatchNorm1d
    assert changes[0].after is None


class OwnDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return input


def _hooked() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.register_forward_hook(lambda *_: None)
    return norm


def _mixed() -> nn.Module:
    layer = nn.LSTM(3, 4)
    layer.weight_hh_l0.requires_grad_(False)
    return layer


TABLE = [  # module, type after, report
    (nn.Dropout(0.1), own.Dropout, "Dropout(p=0.1, inplace=False) -> keyed Dropout(p=0.1)"),
    (nn.Dropout1d(0.1), own.ChannelDropout, "Dropout1d(p=0.1, inplace=False) -> keyed ChannelDropout(p=0.1)"),
    (nn.Dropout2d(0.1), own.ChannelDropout, "Dropout2d(p=0.1, inplace=False) -> keyed ChannelDropout(p=0.1)"),
    (nn.Dropout3d(0.1), own.ChannelDropout, "Dropout3d(p=0.1, inplace=False) -> keyed ChannelDropout(p=0.1)"),
    (nn.AlphaDropout(0.1), own.AlphaDropout, "AlphaDropout(p=0.1, inplace=False) -> keyed AlphaDropout(p=0.1)"),
    (nn.FeatureAlphaDropout(0.1), own.ChannelAlphaDropout, "-> keyed ChannelAlphaDropout(p=0.1)"),
    (StochasticDepth(0.1, "row"), own.StochasticDepth, "(p=0.1, mode=row) -> keyed StochasticDepth(p=0.1)"),
    (
        StochasticDepth(0.1, "batch"),
        own.StochasticDepth,
        "(each example draws for itself, before: one draw for the batch)",
    ),
    (nn.ReLU(inplace=True), nn.ReLU, "ReLU(inplace=True) -> ReLU()"),
    (nn.Hardswish(inplace=True), nn.Hardswish, "Hardswish() -> Hardswish() (out of place)"),
    (
        nn.LSTM(3, 4, 2, dropout=0.5),
        None,
        "-> opened LSTM(3, 4, num_layers=2, dropout=0.5) (nn.Linear sites and keyed dropout)",
    ),
    (nn.GRUCell(3, 4), None, "GRUCell(3, 4) -> opened GRUCell(3, 4) (nn.Linear sites)"),
    (nn.RReLU(), nn.RReLU, "-> unchanged (draws from torch's global generator and has no keyed version"),
    (nn.Dropout(1.0), nn.Dropout, "-> unchanged (drops everything (p = 1)"),
    (OwnDropout(), OwnDropout, "-> unchanged ('0' (OwnDropout) is a Dropout with a forward pass of its own"),
    (_hooked(), nn.BatchNorm2d, "-> unchanged ('0' (BatchNorm2d) has hooks"),
    (_mixed(), nn.LSTM, "-> unchanged ('0.l0': input and hidden weights become one matrix"),
]


@pytest.mark.parametrize(("module", "kind", "report"), TABLE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("training", [True, False])
def test_a_module_becomes(module: nn.Module, kind: type[nn.Module] | None, report: str, training: bool) -> None:
    before = repr(module)
    model = nn.Sequential(module, nn.Linear(3, 3)).train(training)
    new, changes = fixed(model)
    assert kind is None or type(new[0]) is kind
    assert all(part.training == training for part in new.modules())
    assert not getattr(new[0], "inplace", False) or kind is nn.Dropout
    assert str(changes).startswith("0: ")
    assert report in str(changes)
    assert "\n" not in str(changes)
    assert repr(model[0]) == before, "the given model changed"


def test_what_needs_nothing_is_not_reported() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), own.Dropout(), nn.ReLU())
    new, changes = fixed(model)
    assert (len(changes), str(changes), str(new)) == (0, "nothing to change", str(model))
    assert fixed(fixed(nn.Sequential(nn.Dropout(), nn.LSTM(2, 3)))[0])[1] == ()


def test_a_shared_module_is_replaced_once_and_stays_shared() -> None:
    norm = nn.BatchNorm2d(8)
    new, changes = fixed(nn.Sequential(norm, nn.ReLU(), norm))
    assert new[0] is new[2]
    assert [change.name for change in changes] == ["0"]
    assert str(Change("", "a", "b")) == "(the model): a -> b"


def test_arguments_and_parameters_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ValueError, match="groups 0 is not allowed"):
        fixed(nn.BatchNorm2d(8), groups=0)
    layer, other = nn.GRU(3, 4), nn.Linear(3, 12)
    other.weight = layer.weight_ih_l0
    with pytest.raises(SiteError, match="is tied to 'weight_ih'"):
        fixed(nn.ModuleList([layer, other]))
    with pytest.raises(SiteError, match="run the model once first"):
        fixed(nn.LazyBatchNorm2d())


# ---------------------------------------------------------------- the engine trains what it refused


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.AlphaDropout(0.2), nn.Linear(8, 2)
    )


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(32, 2),
    )


class Residual(nn.Module):
    """A transformer layer for sequences first within a residual branch that is dropped by example."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1)
        self.depth = StochasticDepth(0.3, "row")
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) * torch.tensor([[1.0], [-0.5], [0.2]])  # [N, T, 4]
        x = x + self.depth(self.layer(x.transpose(0, 1)).transpose(0, 1))
        return self.head(x.mean(1))


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("make", [_mlp, _cnn, pytest.param(Residual, marks=pytest.mark.long)])
def test_estimates_of_a_fixed_model_are_unbiased(make) -> None:
    """The reference is autograd of the noisy objective with the same noise and masks in the shared pass."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        old = make()
        x, y = torch.randn(4, 4), torch.tensor([0, 1, 1, 0])
    with pytest.raises(SiteError):
        GLR(copy.deepcopy(old), 0.3).prepare(x)
    model, changes = fixed(old)
    assert changes
    steps = 100
    runs: list[list[Tensor]] = []
    for estimator, options in (("conditional", {"copies": 32}), ("pathwise", {})):
        net = GLR(model, 0.3, estimator, executor=Inline(1), **options)
        runs.append([])
        for net.step in range(steps):
            grads = net.gradients(x, y).grads
            runs[-1].append(torch.cat([grads[name].flatten() for name, _ in model.named_parameters()]).double())
    found, expected = (torch.stack(values) for values in runs)
    difference = found - expected
    z = difference.mean(0) / (difference.std(0) / steps**0.5).clamp(min=1e-9)
    assert z.abs().max() < 5  # of at most 300 coordinates
    true = expected.mean(0)
    slopes = 1 + difference @ true / (true @ true)
    assert slopes.std() / steps**0.5 < 0.1, "too few steps to see a bias"
    assert abs(slopes.mean() - 1) < 4.5 * slopes.std() / steps**0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        pytest.param(lambda: resnet18(num_classes=3), {nn.BatchNorm2d, nn.ReLU}, marks=pytest.mark.long),
        (
            lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.1, num_classes=3),
            {StochasticDepth},
        ),
        (lambda: VisionTransformer(32, 16, 2, 2, 8, 16, 0.1, 0.1, 3), {nn.MultiheadAttention, nn.Dropout}),
    ],
    ids=["ResNet", "ConvNeXt", "ViT"],
)
def test_torchvision_models_are_fixed(build, kinds: set[type[nn.Module]]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        old = build().eval()
        x = torch.randn(2, 3, 32, 32)
        for parameter in old.parameters():
            parameter.data.add_(torch.randn_like(parameter) / 10)  # a ViT has a head of zeros
    new, changes = fixed(old)
    assert {change.before.partition("(")[0] for change in changes} == {kind.__name__ for kind in kinds}
    assert all(change.after for change in changes)
    assert not any(type(module) in kinds - {nn.ReLU} for module in new.modules())
    if nn.BatchNorm2d not in kinds:
        with torch.no_grad():
            assert (new(x) - old(x)).abs().max() < 1e-5 * old(x).abs().max()
        assert new.state_dict().keys() == old.state_dict().keys()
    net = GLR(new.train(), 0.3, "joint", copies=2, executor=Inline(1))
    assert net.gradients(x, torch.tensor([0, 1])).grads.keys() == dict(new.named_parameters()).keys()
