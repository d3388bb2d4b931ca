"""Redraws inside the column space of a layer's input: unbiased against sums over all states of threshold units."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR, Gaussian, Laplace
from glr_dist.errors import ConfigError, SiteError
from glr_dist.estimators import redraw
from glr_dist.estimators.column_space import ColumnSpace, column_space
from glr_dist.execution.inline import Inline
from glr_dist.losses import cross_entropy, zero_one
from glr_dist.network import Network
from glr_dist.nn import Heaviside
from glr_dist.rules import RULES, direct_parameters
from glr_dist.sites import Site

from .closed_forms import threshold_risk
from .test_unbiased import agrees, estimates

SCALE, REPEATS = 0.7, 256


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(**{"in_channels": 1, "out_channels": 1, "kernel_size": (1, 2), **options})


# A layer with few columns and at most twelve logits, and the shape of an input.
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "convolution": (conv, (1, 2, 5)),
    "two groups of two channels": (lambda: conv(in_channels=2, out_channels=4, kernel_size=1, groups=2), (2, 1, 3)),
    "strides, padding and dilation": (
        lambda: conv(kernel_size=2, stride=(1, 2), padding=(1, 1), dilation=(1, 2), bias=False),
        (1, 4, 3),
    ),
    "tokens": (lambda: nn.Linear(1, 2), (5, 1)),
    "tokens in a plane, without bias": (lambda: nn.Linear(2, 2, bias=False), (2, 3, 2)),
}


def made(layer: str, blank: bool = True, **options: Any) -> tuple[GLR, Tensor, Tensor]:
    """A network of threshold units; one of its three examples is blank, so that its columns are dependent."""
    kind, shape = LAYERS[layer]
    torch.manual_seed(5)
    first, x = kind(), torch.randn(3, *shape, dtype=torch.float64)
    if blank:
        x[1] = 0
    units = first(x[:1].float()).numel()
    model = nn.Sequential(first, Heaviside(), nn.Flatten(), nn.Linear(units, 2)).double()
    with torch.no_grad():
        first.weight.mul_(0.5)
        model[3].weight.normal_()
    chosen: dict[str, Any] = {
        "redraw": {"0": "column_space", "*": "copies"},
        "head": "expected",
        "example_block": 4 * REPEATS,
        "copies": 2 * 16,
        "executor": Inline(1),
    }
    net = GLR(model, Gaussian(SCALE), **{**chosen, **options})
    return net, x.repeat(REPEATS, *[1] * len(shape)), torch.tensor([0, 1, 1]).repeat(REPEATS)


def reference(net: GLR, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of J by the first layer, from the probabilities of all states of the hidden units."""
    layer, x, y = net.model[0], x[:3], y[:3]
    names = [f"0.{name}" for name, _ in layer.named_parameters()]
    with torch.enable_grad():
        on = torch.special.ndtr(layer(x).flatten(1) / SCALE)
        grads = torch.autograd.grad(threshold_risk(net, on, y, SCALE), list(layer.parameters()))
    return dict(zip(names, grads, strict=True))


def check(layer: str, needed: float = 0.02, most: int | None = None, **options: Any) -> None:
    net, x, y = made(layer, **options)
    right = reference(net, x, y)
    loss = cross_entropy if net.options.name == "layerwise" else zero_one
    found = ({name: step[name] for name in right} for step in estimates(net, x, y, loss))
    agrees(itertools.islice(found, most), right, needed)


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("layer", LAYERS)
def test_redraws_inside_the_column_space_estimate_the_gradient_of_j(layer: str) -> None:
    check(layer)


OPTIONS: dict[str, dict[str, Any]] = {
    "iid": {"sampler": "iid", "copies": 8},
    "no pairs": {"sampler": "iid", "antithetic": False, "copies": 8},
    "frames without pairs": {"antithetic": False},
    "sobol": {"sampler": "sobol", "copies": 8},
    "leave-one-out": {"baseline": "leave_one_out"},
    "frames in parts, two passes": {"copies": 12, "passes": 2, "block_elements": 2**15, "needed": 0.05},
    "layerwise": {"estimator": "layerwise", "head": "sampled"},
}
LONG_OPTIONS = ("no pairs", "leave-one-out")


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "options", [pytest.param(each, marks=[pytest.mark.long] * (each in LONG_OPTIONS)) for each in OPTIONS]
)
def test_with_other_options(options: str) -> None:
    check("tokens", **{"needed": 0.03, **OPTIONS[options]})


@pytest.mark.slow
@pytest.mark.montecarlo
def test_they_vary_less_than_redraws_of_all_noise() -> None:
    """At as many pairs as the column space has dimensions, a frame spans it, but not the site."""

    def variance(how: str) -> Tensor:
        net, x, y = made("convolution", blank=False, redraw={"0": how, "*": "copies"}, copies=2 * 3)
        drawn = [step["0.weight"].flatten() for step in itertools.islice(estimates(net, x, y, zero_one), 64)]
        return torch.stack(drawn).var(0).sum()

    assert variance("column_space") < 0.7 * variance("copies")


# ---------------------------------------------------------------- the bases

SHAPES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    **{name: (kind(), shape) for name, (kind, shape) in LAYERS.items()},
    "depthwise": (nn.Conv2d(3, 6, 3, padding=1, groups=3), (3, 6, 7)),
    "valid padding": (nn.Conv2d(2, 4, (2, 3), padding="valid", groups=2), (2, 8, 9)),
    "one vector": (nn.Linear(3, 4), (3,)),
}


@pytest.mark.parametrize("content", ["random", "blank", "equal rows"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bases_are_orthonormal_and_span_what_the_rule_sees(shape: str, content: str) -> None:
    layer, size = SHAPES[shape]
    torch.manual_seed(0)
    layer, x = layer.double(), torch.randn(4, *size, dtype=torch.float64)
    x = {"random": x, "blank": torch.zeros_like(x), "equal rows": x[..., :1].expand(x.shape).contiguous()}[content]
    site, space = space_of(layer, x)
    basis = space.basis(layer, x)
    identity = torch.eye(space.rank, dtype=torch.float64).expand(*basis.shape[:2], -1, -1)
    torch.testing.assert_close(basis.mT @ basis, identity)
    delta = torch.randn_like(layer(x))
    inside = space.expand(basis, space.inside(basis, delta), site)[0]
    found = RULES[type(layer)](layer, x, delta - inside)
    for name, _ in layer.named_parameters():
        grad = found[name]
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12, msg=name)
    c = torch.randn(5, 4, space.units, dtype=torch.float64)
    noise = space.expand(basis, c, site)
    assert noise.shape == (5, *delta.shape)
    for direction, eps in zip(c, noise, strict=True):
        torch.testing.assert_close(space.inside(basis, eps)[0], direction)


def space_of(layer: nn.Module, x: Tensor) -> tuple[Site, ColumnSpace]:
    network = Network(nn.Sequential(layer))
    network.prepare(x, keep_inputs=lambda _: True)
    (site,) = network.sites
    return site, column_space(site, direct_parameters(network, site))


def test_only_trained_parameters_have_columns() -> None:
    layer, x = nn.Conv2d(1, 2, 3), torch.randn(2, 1, 8, 8)
    assert space_of(layer, x)[1].rank == 10
    layer.bias.requires_grad_(False)
    assert space_of(layer, x)[1].rank == 9
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(True)
    site, space = space_of(layer, x)
    assert (space.rank, space.units) == (1, 2)
    mean = space.expand(space.basis(layer, x), torch.full((1, 2, 2), 6.0), site)
    torch.testing.assert_close(mean.abs(), torch.ones(1, 2, 2, 6, 6))  # 36 equal values of norm 6


# ---------------------------------------------------------------- choice and cost


def images() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    return model, torch.randn(6, 1, 12, 12), torch.tensor([0, 1, 2, 0, 1, 2])


def test_auto_takes_it_where_it_pays() -> None:
    model, x, y = images()
    net = GLR(model, 0.5, copies=40, redraw="auto")
    step = net.bind(x, y)
    assert {name: space.rank for name, space in step.spaces.items()} == {"0": 10}  # site 2: 19 columns, 64 positions
    assert [step.redrawn(site) for site in net.network.sites] == [20, 128, 3]
    assert GLR(model, 0.5, copies=40, redraw={"5": "copies", "*": "column_space"}).bind(x, y).spaces.keys() == {
        "0",
        "2",
    }
    works = [net.estimator.work(step, item) for item in net.estimator.items(step, 0) if item.site == "0"]
    assert sum(work.noise for work in works) == 6 * 20 * 20  # examples, pairs, coefficients
    assert {work.frames for work in works} == {(20,)}
    plain = GLR(model, 0.5, copies=40).cost(x, y)
    expanding = 40 / 2 * 2 * 20 * 100 / net.network.flops  # of pairs: a product of 20 coefficients with 100 positions
    assert net.cost(x, y) == (plain[0], pytest.approx(plain[1] + expanding))


@pytest.mark.parametrize(
    "options",
    [
        {"noise": Laplace(0.5)},
        {"noise": Gaussian(0.5, learn="site")},
        {"noise": 0.5, "estimator": "joint"},
        {"noise": 0.5, "site_names": ("5",)},
    ],
    ids=str,
)
def test_elsewhere_auto_changes_nothing(options: dict[str, Any]) -> None:
    model, x, y = images()
    for parameter in model[:4].parameters():
        parameter.requires_grad_("site_names" not in options)
    found, plain = (GLR(model, copies=8, redraw=how, **options).gradients(x, y) for how in ("auto", "copies"))
    for name, grad in plain.grads.items():
        assert torch.equal(found.grads[name], grad)


def test_a_last_site_that_draws_nothing_has_no_space() -> None:
    """Its δ is the derivative of the loss, which needs no redraw of the noise inside a space."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(4, 30, 2)
    y = torch.randint(0, 2, (4, 30))
    for head, spaces in (("sampled", {"0", "2"}), ("derivative", {"0"}), ("expected", {"0"})):
        net = GLR(model, 0.5, copies=8, redraw="auto", head=head)
        loss = zero_one if head == "expected" else cross_entropy
        assert net.bind(x, y, loss).spaces.keys() == spaces
        net.gradients(x, y, loss)


# ---------------------------------------------------------------- refusals


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    model, x, _ = images()
    with pytest.raises(ConfigError, match="needs the gaussian law"):
        GLR(model, Laplace(0.5), redraw="column_space")
    with pytest.raises(ConfigError, match="the gradient of a scale needs the whole noise"):
        GLR(model, Gaussian(0.5, learn="unit"), redraw={"0": "column_space", "*": "copies"})
    with pytest.raises(ConfigError, match="not with 'joint'"):
        GLR(model, 0.5, "joint", redraw="column_space")
    with pytest.raises(SiteError, match=r"'5' leaves nothing out: each channel has 1 logits"):
        GLR(model, 0.5, redraw="column_space").prepare(x)
    model[0].padding, model[0].padding_mode = (1, 1), "circular"
    with pytest.raises(SiteError, match="'0' needs a Linear or Conv2d"):
        GLR(model, 0.5, redraw={"0": "column_space", "*": "auto"}).prepare(x)
    normed = nn.Sequential(nn.GroupNorm(1, 1), *images()[0])
    with pytest.raises(SiteError, match="'1' needs a Linear or Conv2d whose own parameters alone"):
        GLR(normed, 0.5, redraw={"1": "column_space", "*": "auto"}).prepare(x)


class Own:
    """A law that calls itself Gaussian."""

    law, scale = "gaussian", 0.5

    def sample(self, shape: Any, stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        return Gaussian().sample(shape, stream, dtype)

    def score(self, eps: Tensor) -> Tensor:
        return eps


def test_a_law_that_only_bears_the_name_is_refused() -> None:
    model, x, _ = images()
    with pytest.raises(ConfigError, match=r"needs glr_dist\.Gaussian"):
        GLR(model, Own(), redraw={"0": "column_space", "*": "auto"}).prepare(x)


# ---------------------------------------------------------------- biased twins fail

_basis, _outside = ColumnSpace.basis, redraw.Redraw._outside


def without_outside(step: Any, item: Any, site: Site, tape: Any) -> tuple[Tensor, Tensor]:
    """The bug: the noise outside the space is forgotten, which is another J."""
    return _outside(step, item, site, tape)[0], tape.logits[site.name]


def with_inside(step: Any, item: Any, site: Site, tape: Any) -> tuple[Tensor, Tensor]:
    """The bug: the shared noise inside the space stays, beside the redrawn one."""
    z = tape.logits[site.name]
    return _outside(step, item, site, tape)[0], z + SCALE * step.shared_eps(site, 0, 0)


def longer(space: ColumnSpace, module: nn.Module, x: Tensor) -> Tensor:
    """The bug: columns that are orthogonal, but not of norm 1."""
    return 1.2 * _basis(space, module, x)


def without_first(space: ColumnSpace, module: nn.Module, x: Tensor) -> Tensor:
    """The bug: a direction of the space is missing."""
    basis = _basis(space, module, x).clone()
    basis[..., 0] = 0
    return basis


TWINS: dict[str, tuple[Any, str, Any]] = {
    "no noise outside": (redraw.Redraw, "_outside", staticmethod(without_outside)),
    "noise inside twice": (redraw.Redraw, "_outside", staticmethod(with_inside)),
    "columns too long": (ColumnSpace, "basis", longer),
    "a direction missing": (ColumnSpace, "basis", without_first),
}


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("twin", TWINS)
def test_faults_are_caught(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*TWINS[twin])
    with pytest.raises(AssertionError, match="z too large"):
        check("convolution", 0.5, most=96)
