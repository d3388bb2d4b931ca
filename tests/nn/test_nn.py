from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR
from glr_dist.execution.inline import Inline
from glr_dist.nn import ACTIVATIONS, Dropout, Heaviside, Sign, Staircase, mlp
from glr_dist.noise import Gaussian
from glr_dist.sizes import mlp_parameters

X = torch.tensor([-math.inf, -1.0, -0.3, -0.0, 0.0, 0.2, 0.5, 0.999, 1.0, 7.0, math.inf])


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Heaviside(), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]),
        (Sign(), [-1, -1, -1, 0, 0, 1, 1, 1, 1, 1, 1]),
        (Staircase(), [0, 0, 0, 0, 0, 0, 0.5, 0.75, 1, 1, 1]),
        (Staircase(1), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discontinuous_activation(module: nn.Module, expected: list[float], dtype: torch.dtype) -> None:
    x = X.to(dtype)
    before = x.clone()
    found = module(x)
    assert found.tolist() == expected
    assert found.dtype == dtype
    assert torch.equal(x, before), "the input was written to"


@pytest.mark.parametrize("module", [Heaviside(), Sign(), Staircase()], ids=repr)
def test_discontinuous_activation_is_a_constant_for_autograd(module: nn.Module) -> None:
    assert not module(torch.randn(3, requires_grad=True)).requires_grad


@pytest.mark.parametrize("steps", [0, -1])
def test_staircase_needs_a_stair(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps {steps}"):
        Staircase(steps)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_keeps_the_shape(name: str) -> None:
    assert ACTIVATIONS[name]()(torch.randn(2, 3, 4)).shape == (2, 3, 4)


# ---------------------------------------------------------------- dropout


class Probe(nn.Module):
    """Keeps what passes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x


def masks(estimator: str, seed: int = 0, p: float = 0.4, step: int = 0) -> list[Tensor]:
    """Which elements each pass of one estimate keeps."""
    probe = Probe()
    model = nn.Sequential(nn.Linear(3, 50), nn.Sigmoid(), Dropout(p), probe, nn.Linear(50, 2))
    net = GLR(model, Gaussian(0.5), estimator, copies=4, seed=seed, executor=Inline(1))
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.long)
    net.gradients(x, y)  # prepares and verifies the network
    probe.seen.clear()
    net.step = step
    net.gradients(x, y)
    return [seen != 0 for seen in probe.seen]


def test_dropout_keeps_one_mask_in_a_shared_pass_and_its_redraws() -> None:
    shared, *redraws = masks("conditional")
    assert 0.5 < shared.float().mean() < 0.7
    assert len({tuple(row.tolist()) for row in shared}) == len(shared), "examples share a mask"
    assert redraws
    for mask in redraws:
        assert torch.equal(mask, shared.repeat(len(mask) // len(shared), 1))


def test_dropout_masks_are_named_by_seed_and_step() -> None:
    assert torch.equal(masks("conditional")[0], masks("conditional")[0])
    assert not torch.equal(masks("conditional")[0], masks("conditional", seed=1)[0])
    assert not torch.equal(masks("conditional")[0], masks("conditional", step=1)[0])


def test_dropout_draws_for_each_copy_of_joint() -> None:
    *_, joint = masks("joint")
    assert len({tuple(row.tolist()) for row in joint}) == len(joint) == 4 * 6


def test_two_dropouts_have_masks_of_their_own() -> None:
    probes = Probe(), Probe()
    model = nn.Sequential(nn.Linear(3, 50), Dropout(), probes[0], Dropout(), probes[1], nn.Linear(50, 2))
    net = GLR(model, copies=2, executor=Inline(1))
    net.gradients(torch.randn(6, 3), torch.zeros(6, dtype=torch.long))
    first, both = (probe.seen[-1] != 0 for probe in probes)
    assert 0 < both.sum() < first.sum()


def test_dropout_keeps_the_mean() -> None:
    probe = Probe()
    model = nn.Sequential(nn.Linear(3, 3), Lambda(), Dropout(0.25), probe, nn.Linear(20000, 2))
    net = GLR(model, estimator="pathwise", executor=Inline(1), sites=[nn.Linear])
    net.gradients(torch.randn(2, 3), torch.zeros(2, dtype=torch.long))
    kept = probe.seen[-1]
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert abs(kept.mean() - 1) < 4.5 * (1 / 3 / kept.numel()) ** 0.5  # variance p / (1 - p)


class Lambda(nn.Module):
    """Many ones that still depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 20000) + 0 * x.sum(1, keepdim=True)


def test_dropout_is_the_identity_in_evaluation_and_without_dropping() -> None:
    x = torch.randn(4, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_dropout_in_training_outside_of_an_estimate_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"call \.eval"):
        Dropout(0.5)(torch.randn(3))


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_refuses_other_probabilities(p: float) -> None:
    with pytest.raises(ValueError, match=f"p {p}"):
        Dropout(p)


# ---------------------------------------------------------------- the paper's networks


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_mlp_has_the_layers_asked_for(activation: str, dropout: float) -> None:
    model = mlp(12, (5, 4), 3, activation, dropout=dropout)
    hidden = [nn.Linear, ACTIVATIONS[activation], *[Dropout] * bool(dropout)]
    assert [type(layer) for layer in model] == [nn.Flatten, *hidden, *hidden, nn.Linear]
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(5, 12), (4, 5), (3, 4)]
    assert model.eval()(torch.randn(2, 3, 4)).shape == (2, 3)


def test_mlp_without_hidden_layers_is_one_linear_layer() -> None:
    assert [type(layer) for layer in mlp(4, (), 2)] == [nn.Flatten, nn.Linear]


@pytest.mark.parametrize(("init", "more"), [("paper", 1), ("authors", 0)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_mlps_paper_init_is_normal_with_variance_4_over_fan_in_plus_1(scale: float, init: str, more: int) -> None:
    model = mlp(9, (2000,), 300, init=init, init_scale=scale, generator=torch.Generator().manual_seed(0))
    for layer, fan_in in ((model[1], 9), (model[3], 2000)):
        std = scale * 2 / (fan_in + more) ** 0.5
        for parameter in layer.parameters():
            count = parameter.numel()
            assert abs(parameter.mean()) < 4.5 * std / count**0.5
            assert abs(parameter.var() / std**2 - 1) < 4.5 * (2 / count) ** 0.5


def test_a_bias_in_the_first_layer_only() -> None:
    model = mlp(5, (4, 3), 2, bias="first", generator=torch.Generator().manual_seed(0))
    names = [name for name, _ in model.named_parameters()]
    assert names == ["1.weight", "1.bias", "3.weight", "5.weight"]
    assert mlp_parameters(5, (4, 3), 2, "first") == sum(p.numel() for p in model.parameters())
    assert mlp_parameters(5, (4, 3), 2) == sum(p.numel() for p in mlp(5, (4, 3), 2).parameters())
    net = GLR(model, copies=8)
    net.estimate(torch.rand(6, 5), torch.arange(6) % 2)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_mlps_torch_init_is_uniform_as_torchs_own(scale: float) -> None:
    model = mlp(100, (200,), 10, init="torch", init_scale=scale, generator=torch.Generator().manual_seed(0))
    bound = scale / 10
    own = nn.Linear(100, 200)
    for parameter, torchs in zip(model[1].parameters(), own.parameters(), strict=True):
        count = parameter.numel()
        assert parameter.abs().max() <= bound
        assert abs(parameter.mean()) < 4.5 * bound / (3 * count) ** 0.5
        # Of a uniform variable's square: mean b²/3, variance 4b⁴/45; torch's own weights are no narrower or wider.
        assert abs(parameter.square().mean() / (bound**2 / 3) - 1) < 4.5 * (0.8 / count) ** 0.5
        assert abs(torchs.square().mean() * scale**2 / (bound**2 / 3) - 1) < 4.5 * (0.8 / count) ** 0.5


def test_mlps_init_is_named_by_its_generator_alone() -> None:
    def weights(seed: int) -> Tensor:
        return torch.cat(
            [p.flatten() for p in mlp(3, (4,), 2, generator=torch.Generator().manual_seed(seed)).parameters()]
        )

    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), before)
