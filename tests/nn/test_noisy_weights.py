"""Noise on the weights of layers: each example's outputs, and gradients of J against closed forms and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from estimators.closed_forms import threshold_risk
from estimators.test_unbiased import agrees, estimates
from slopes import Z, slopes
from torch import Tensor, nn
from torch.func import functional_call

from glr_dist import GLR, Gaussian, Laplace, config
from glr_dist.errors import ConfigError, SiteError
from glr_dist.execution.inline import Inline
from glr_dist.losses import cross_entropy, zero_one
from glr_dist.nn import Heaviside, NoisyWeights, noisy_weights
from glr_dist.robustness.certificates.first_segment import check_smoothable
from glr_dist.training.train import train

# Layers, and the shape of an input.
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(1, 2, 3, padding=1), (1, 5, 4)),
    "groups, strides and dilation": (
        lambda: nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2, bias=False),
        (4, 5, 6),
    ),
    "same padding": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 4, 4)),
    "linear": (lambda: nn.Linear(3, 2), (3,)),
    "tokens, without bias": (lambda: nn.Linear(3, 2, bias=False), (4, 2, 3)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_each_example_has_weights_of_its_own(layer: str) -> None:
    kind, shape = LAYERS[layer]
    torch.manual_seed(0)
    plain, x = kind().double(), torch.randn(5, *shape, dtype=torch.float64)
    noisy = noisy_weights(plain)
    assert isinstance(noisy, NoisyWeights)
    assert noisy.weight is not plain.weight  # of a copy
    assert torch.equal(noisy(x), plain(x))
    assert noisy(x[:0]).shape == plain(x[:0]).shape
    assert list(noisy.state_dict()) == list(plain.state_dict())
    net = GLR(noisy, 0.3)
    net.prepare(x)
    (site,) = net.network.sites
    assert (site.name, site.units) == ("weights", sum(p.numel() for p in plain.parameters()))
    eps = torch.randn(5, site.units, dtype=torch.float64)
    with net.network.hooked():
        found = net.network.run(x, lambda name, _, z: z + eps)
    for i in range(5):
        flat = torch.cat([p.flatten() for p in plain.parameters()]) + eps[i]
        pieces = flat.split([p.numel() for p in plain.parameters()])
        own = {name: piece.view_as(p) for (name, p), piece in zip(plain.named_parameters(), pieces, strict=True)}
        assert torch.allclose(found[i], functional_call(plain, own, (x[i : i + 1],))[0])
    assert torch.equal(net(x), plain(x))


# ---------------------------------------------------------------- gradients of J

SCALE, REPEATS = 0.4, 256


def threshold_net(**options: Any) -> tuple[GLR, Tensor, Tensor]:
    """A layer with noisy weights before threshold units, whose states are then independent of each other."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(2, 3), Heaviside(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[2].weight.normal_()
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1, 1])
    chosen = {"head": "expected", "example_block": 4 * REPEATS, "copies": 32, "executor": Inline(1), **options}
    net = GLR(noisy_weights(model, ["0"]), Gaussian({"0.weights": SCALE, "*": 0.7}), **chosen)
    return net, x.repeat(REPEATS, 1), y.repeat(REPEATS)


def reference(net: GLR, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of J: with weights θ + σ ε, a unit is on with the probability Φ(z / (σ √(|x|² + 1)))."""
    layer, x, y = net.model[0], x[:3], y[:3]
    with torch.enable_grad():
        on = torch.special.ndtr(layer(x) / (SCALE * (x.square().sum(1, keepdim=True) + 1).sqrt()))
        grads = torch.autograd.grad(threshold_risk(net, on, y, 0.7), [layer.weight, layer.bias])
    return dict(zip(("0.weight", "0.bias"), grads, strict=True))


OPTIONS: dict[str, dict[str, Any]] = {
    "pairs in frames": {},
    "iid": {"sampler": "iid", "copies": 8},
    "no pairs": {"sampler": "iid", "antithetic": False, "copies": 8},
    "sobol": {"sampler": "sobol", "copies": 8},
    "leave-one-out": {"baseline": "leave_one_out"},
    "in parts, two passes": {"copies": 12, "passes": 2, "block_elements": 2**13, "needed": 0.05},
    "joint": {"estimator": "joint", "copies": 64, "needed": 0.06},
    "layerwise": {"estimator": "layerwise", "head": "sampled"},
}


@pytest.mark.long
@pytest.mark.montecarlo
@pytest.mark.parametrize("options", OPTIONS)
def test_the_gradient_of_threshold_units_is_that_of_j(options: str) -> None:
    chosen = dict(OPTIONS[options])
    needed = chosen.pop("needed", 0.03)
    net, x, y = threshold_net(**chosen)
    right = reference(net, x, y)
    loss = cross_entropy if net.options.name == "layerwise" else zero_one
    agrees(({name: step[name] for name in right} for step in estimates(net, x, y, loss)), right, needed)


@pytest.mark.long
@pytest.mark.montecarlo
def test_noise_on_the_logits_is_caught_as_another_objective() -> None:
    net, x, y = threshold_net()
    right = reference(net, x, y)
    model = nn.Sequential(nn.Linear(2, 3), Heaviside(), nn.Linear(3, 2)).double()
    model.load_state_dict(net.model.state_dict())
    other = GLR(model, {"0": SCALE, "*": 0.7}, head="expected", example_block=4 * REPEATS, copies=32)
    with pytest.raises(AssertionError):
        agrees(({name: step[name] for name in right} for step in estimates(other, x, y, zero_one)), right, 0.03)


def convolutional() -> tuple[nn.Module, Tensor, Tensor]:
    """Noisy kernels, whose noise the positions share, and noisy weights behind them."""
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 2, stride=(1, 2), padding=1, groups=2), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 3)),
    ).double()
    return noisy_weights(model, ["0", "5"]), torch.randn(4, 2, 3, 5, dtype=torch.float64), torch.arange(4) % 3


SLOPES: dict[str, dict[str, Any]] = {
    "conditional": {},
    "joint": {"estimator": "joint", "copies": 512},
    "laplace": {"noise": Laplace({"*.weights": 0.2, "*": 0.3}), "copies": 100, "passes": 8},
    "derivative of the head": {"head": "derivative"},
    "learned scales": {"noise": Gaussian({"*.weights": 0.2, "*": 0.3}, learn="unit")},
    "feedback": {"feedback": "control_variate"},
}


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.long] * (c != "conditional")) for c in SLOPES])
def test_the_slope_to_autograd_is_one(case: str) -> None:
    model, x, y = convolutional()
    options = {"noise": Gaussian({"*.weights": 0.2, "*": 0.3}), "copies": 48, "samples": 4000, **SLOPES[case]}
    for name, slope in slopes(model, x, y, **options).items():
        assert abs(slope.z) < Z, (name, slope)
        assert slope.error < 0.2, (name, slope)


# ---------------------------------------------------------------- what is refused, and what is shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"redraw": {"0.weights": "column_space", "*": "copies"}}, ["'column_space' at '0.weights' needs"]),
        ({"redraw": {"0.weights": "flips", "*": "copies"}}, ["'flips' at '0.weights' needs"]),
        ({"head": "expected"}, ["head", "'5.weights'"]),
    ],
)
def test_what_needs_noise_on_the_logits_is_refused(options: dict[str, Any], words: list[str]) -> None:
    model, x, y = convolutional()
    with pytest.raises((SiteError, ConfigError)) as caught:
        GLR(model, 0.2, copies=8, **options).gradients(x, y, zero_one)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_certificate_is_not_made_from_noise_on_weights() -> None:
    model, x, _ = convolutional()
    net = GLR(model, 0.2)
    net.prepare(x)
    with pytest.raises(SiteError, match=r"'0\.weights' lies inside '0'"):
        check_smoothable(net)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["7"], "noisy_weights: the pattern '7' matches no Linear or Conv2d; known are 0, 1, 2"),
        (["1"], "noisy_weights: '1' has the padding_mode 'reflect', not 'zeros'"),
        (["2"], "'2' (Doubled) is a Linear with a forward pass of its own"),
    ],
)
def test_layers_that_cannot_have_noisy_weights_are_refused(names: list[str], said: str) -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), Doubled(2, 2)])
    with pytest.raises(SiteError) as caught:
        noisy_weights(model, names)
    assert str(caught.value).startswith(said)


def test_the_summary_says_that_the_objective_is_another_one() -> None:
    model, x, _ = convolutional()
    lines = str(GLR(model, {"*.weights": 0.2, "*": 0.3}, copies=8).summary(x)).splitlines()
    assert lines[1].startswith("0.weights  Weights      1       20")
    assert "noise on the weights at 0.weights, 5.weights: J is the expected loss under perturbed weights there" in lines


def test_a_configuration_chooses_the_layers(tiny, tmp_path) -> None:
    options = ("model.activation=sigmoid", "training.epochs=1")
    found = train(tiny('noise.weights=["1"]', 'noise.scale={"*.weights": 0.1, "*": 0.5}', *options), tmp_path / "run")
    plain = train(tiny(*options), tmp_path / "plain")
    assert found["params_sha256"] != plain["params_sha256"]
    with pytest.raises(SiteError, match=r"noise\.weights: the pattern '2' matches no Linear or Conv2d; known are 1, 3"):
        train(tiny('noise.weights=["2"]'), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"noise\.weights: has no effect with noise\.law 'none'"):
        config.build(config.Noise, {"law": "none", "weights": ["1"]}, "noise.")
