"""Each rule, drawn from the registry, and `any_segment`, against autograd of (z · δ).sum()."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glr_dist.network import Network
from glr_dist.rules import RULES, any_segment, direct_rule
from glr_dist.sites import Site, SiteError

Draw = Callable[[st.SearchStrategy[Any]], Any]
fixed = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def sizes(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most)


def a_linear(draw: Draw) -> tuple[nn.Module, Tensor]:
    """Any number of dimensions between the batch and the features; a batch may be empty."""
    inputs, outputs = draw(sizes(1, 4)), draw(sizes(1, 4))
    between = draw(st.lists(sizes(1, 3), max_size=2))
    return nn.Linear(inputs, outputs, bias=draw(st.booleans())), torch.randn(draw(sizes(0, 4)), *between, inputs)


def a_conv(draw: Draw) -> tuple[nn.Module, Tensor]:
    groups = draw(sizes(1, 3))
    kernel = (draw(sizes(1, 3)), draw(sizes(1, 3)))
    valid = draw(st.booleans())
    layer = nn.Conv2d(
        groups * draw(sizes(1, 2)),
        groups * draw(sizes(1, 2)),
        kernel,
        stride=1 if valid else (draw(sizes(1, 3)), draw(sizes(1, 3))),
        padding="valid" if valid else (draw(sizes(0, 2)), draw(sizes(0, 2))),
        dilation=(draw(sizes(1, 2)), draw(sizes(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    return layer, torch.randn(draw(sizes(1, 3)), layer.in_channels, draw(sizes(5, 8)), draw(sizes(5, 8)))


LAYERS: dict[type[nn.Module], Callable[[Draw], tuple[nn.Module, Tensor]]] = {nn.Linear: a_linear, nn.Conv2d: a_conv}


def by_autograd(layer: nn.Module, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*layer.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(layer(x), parameters, delta), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", RULES)
@fixed
@given(data=st.data())
def test_rule_is_the_vector_jacobian_product(kind: type[nn.Module], data: st.DataObject) -> None:
    torch.manual_seed(data.draw(sizes(0, 2**32)))
    layer, x = LAYERS[kind](data.draw)
    layer, x = layer.double(), x.double()
    delta = torch.randn_like(layer(x))
    found = RULES[kind](layer, x, delta)
    for name, expected in by_autograd(layer, x, delta).items():
        torch.testing.assert_close(found[name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RULES)
@fixed
@given(data=st.data())
def test_any_segment_is_the_vector_jacobian_product(kind: type[nn.Module], data: st.DataObject) -> None:
    torch.manual_seed(data.draw(sizes(0, 2**32)))
    layer, x = LAYERS[kind](data.draw)
    layer, x = layer.double(), x.double()
    assume(len(x) > 0)
    network = Network(nn.Sequential(layer))
    network.prepare(x, keep_inputs=lambda _: False)
    _, tape = network.record(x, unchanged)
    delta = torch.randn_like(layer(x))
    found = any_segment(network, network.sites[0], tape, delta, unchanged)
    assert set(found) == set(network.parameters)
    for name, expected in by_autograd(layer, x, delta).items():
        torch.testing.assert_close(found[f"0.{name}"], expected)


def unchanged(site: Site, z: Tensor) -> Tensor:
    return z


def prepared(model: nn.Module, x: Tensor) -> Network:
    network = Network(model.double())
    network.prepare(x, keep_inputs=lambda site: direct_rule(network, site) is not None)
    return network


def test_any_segment_reaches_all_parameters_since_the_site_before_and_none_before_that() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    network = prepared(model, x)
    shift = torch.randn(5, 4, dtype=torch.float64)

    def noisy(site: Site, z: Tensor) -> Tensor:
        return z + shift if site.name == "0" else z

    _, tape = network.record(x, noisy)
    delta = torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        found = any_segment(network, network.by_name["3"], tape, delta, noisy)
    inside = nn.Sequential(*list(model)[1:])
    names = ["1.weight", "2.weight", "2.bias", "3.weight", "3.bias"]
    expected = torch.autograd.grad(inside(model[0](x).detach() + shift), list(inside.parameters()), delta)
    assert list(found) == names
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient)


class Residual(nn.Module):
    """Two sites in one block: the second sees the first, and the block's input around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x)))


def test_any_segment_holds_the_other_sites_of_its_block_constant() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.LayerNorm(3), Residual(), nn.Linear(3, 2)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    network = prepared(model, x)
    shift = torch.randn(4, 3, dtype=torch.float64)

    def noisy(site: Site, z: Tensor) -> Tensor:
        return z + shift if site.name == "1.first" else z

    with network.hooked(), torch.no_grad():
        _, tape = network.record(x, noisy)
        delta = torch.randn(4, 3, dtype=torch.float64)
        found = any_segment(network, network.by_name["1.second"], tape, delta, noisy)
    block = model[1]
    h = model[0](x)
    # The logits of the second site depend on the first's parameters, but the first answers for those alone.
    z = block.second(torch.tanh(block.first(h) + shift).detach())
    expected = torch.autograd.grad(z, list(block.second.parameters()), delta)
    assert list(found) == ["1.second.weight", "1.second.bias"]
    torch.testing.assert_close(list(found.values()), list(expected))


# ---------------------------------------------------------------- which segments a rule serves


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)),  # the segment owns more than the layer
        nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")),
        nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2, padding="same")),
    ],
)
def test_no_direct_rule_where_it_would_be_wrong(model: nn.Module) -> None:
    network = prepared(model, torch.randn(2, 4, dtype=torch.float64))
    assert direct_rule(network, network.sites[0]) is None


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_direct_rule_leaves_frozen_parameters_out(frozen: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    getattr(model[0], frozen).requires_grad_(False)
    x = torch.randn(4, 3, dtype=torch.float64)
    network = prepared(model, x)
    rule = direct_rule(network, network.sites[0])
    assert rule is not None
    assert set(rule(x, torch.randn(4, 2, dtype=torch.float64))) == {"0.weight", "0.bias"} - {f"0.{frozen}"}


def test_tied_weights_of_two_sites_add_up() -> None:
    """Each site owns the tied parameter under its one name; the sum over both is what autograd gives."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    model[2].weight = model[0].weight
    x, delta = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    network = prepared(model, x)
    with torch.no_grad():
        _, tape = network.record(x, unchanged)
    total = torch.zeros(3, 3, dtype=torch.float64)
    for site in network.sites:
        rule = direct_rule(network, site)
        assert rule is not None
        (name, gradient) = next(iter(rule(tape.inputs[site.name], delta).items()))
        assert name == "0.weight"
        total += gradient
    h = torch.tanh(model[0](x)).detach()
    torch.testing.assert_close(total, delta.T @ x + delta.T @ h)


def test_a_network_of_any_segments_alone_says_what_it_cannot_train() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    with pytest.raises(SiteError, match=r"no site owns the parameter '1\.weight'"):
        prepared(model, torch.randn(2, 3, dtype=torch.float64))


def test_gradients_of_two_parameters_are_two_tensors() -> None:
    """Autograd returns one tensor for both; whoever changes one gradient in place would change the other."""

    class TwoBiases(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.other = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.other

    torch.manual_seed(0)
    network = Network(nn.Sequential(TwoBiases()))
    x = torch.randn(5, 3)
    network.prepare(x, keep_inputs=lambda site: False)
    with torch.no_grad():
        _, tape = network.record(x, lambda site, z: z)
        grads = any_segment(network, network.sites[0], tape, torch.ones(5, 4), lambda site, z: z)
    assert torch.equal(grads["0.bias"], grads["0.other"])
    grads["0.bias"].zero_()
    assert (grads["0.other"] == 5).all()
