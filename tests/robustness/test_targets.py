"""Input gradients by the likelihood ratio method, against closed forms and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import glr_dist
from glr_dist.errors import SiteError
from glr_dist.input_gradient import shifted, spreads
from glr_dist.losses import cross_entropy
from glr_dist.nn import Heaviside
from glr_dist.robustness.targets import Averaged, LikelihoodRatio, WhiteBox
from glr_dist.streams import Key, generator

EXACT = {"copies": 128, "passes": 4}


def images(n, *shape, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def prepared(model, noise, x, **options):
    net = glr_dist.GLR(model.eval(), noise=noise, **options)
    net.prepare(x)
    return net


def estimates(net, x, y, loss, draws, scale=0.5):
    """Returns independent estimates [draws, n, …] in float64, with the same noise scale at all sites."""
    made = shifted(net, x, {site.name: scale for site in net.network.sites}, **EXACT)
    return torch.stack([LikelihoodRatio(made, net, seed).gradients(x, y, loss).double() for seed in range(draws)])


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_the_gradient_of_a_threshold_unit_is_the_density_at_the_threshold(sigma):
    """E[H(w·x + σε)] = Φ(w·x / σ), so the gradient is φ(w·x / σ) w / σ."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1), Heaviside())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        model[1].bias.fill_(0.2)
    x = images(4, 1, 1, 3)
    net = prepared(model, glr_dist.Laplace(0.1), x)  # the noise of training does not matter
    u = model[1](x.flatten(1)).detach().double()[:, 0] / sigma
    density = torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    expected = density[:, None] * model[1].weight.detach().double() / sigma
    found = estimates(net, x, torch.zeros(4), lambda outputs, _: outputs[:, 0], 20, sigma).flatten(2)
    error = found.std(0) / len(found) ** 0.5
    assert error.max() < 0.1 * expected.abs().max()  # the test has power
    assert ((found.mean(0) - expected).abs() <= 4.5 * error + 1e-7).all()


class Residual(nn.Module):
    """Sites nested inside one module instead of a chain."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(12, 6)
        self.outer = nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x.flatten(1))))


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Sigmoid(), nn.Linear(6, 3)),
    "nested": Residual,
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)),
    "before the first site": lambda: nn.Sequential(
        nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)
    ),
}


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_of_a_differentiable_network_matches_autograd_under_noise(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = NETWORKS[name]()
    x, y = images(3, 1, 3, 4), torch.tensor([0, 1, 2])
    net = prepared(model, glr_dist.Gaussian({"*": 0.5}), x)
    found = estimates(net, x, y, cross_entropy, 20)
    many = 6000
    exact = WhiteBox(lambda x: net.noisy(x, Key(99))).gradients(x.repeat(many, 1, 1, 1), y.repeat(many), cross_entropy)
    expected = exact.view(many, *x.shape).double()
    error = (found.var(0) / len(found) + expected.var(0) / many).sqrt()
    assert error.max() < 0.15 * expected.mean(0).abs().max()  # the test has power
    assert ((found.mean(0) - expected.mean(0)).abs() <= 4.5 * error).all()


def test_estimates_are_reproducible_and_do_not_change_the_network():
    model = NETWORKS["mlp"]()
    x, y = images(5, 1, 3, 4), torch.zeros(5, dtype=torch.int64)
    net = prepared(model, glr_dist.Gaussian(0.5, learn="unit"), x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    target = LikelihoodRatio(shifted(net, x, net.scales(), **EXACT), net, 3)
    first, second = target.gradients(x, y, cross_entropy), target.gradients(x, y, cross_entropy)
    assert not torch.equal(first, second)
    again = LikelihoodRatio(shifted(net, x, net.scales(), **EXACT), net, 3)
    assert torch.equal(again.gradients(x, y, cross_entropy), first)
    assert torch.equal(again.gradients(x, y, cross_entropy), second)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_noise_has_the_given_scales_and_a_frame_of_copies():
    model = NETWORKS["mlp"]()
    x = images(2, 1, 3, 4)
    net = prepared(model, glr_dist.Laplace(0.5), x)
    scales = {"1": torch.linspace(0.5, 2, 6), "3": 0.7}
    made = shifted(net, x, scales)
    for site, scale in scales.items():
        assert torch.allclose(made.scales()[f"1.{site}"], torch.as_tensor(scale))
    assert (made.options.copies, made.options.sampler) == (12, "orthogonal")


def test_the_spread_of_logits_is_over_units_and_examples():
    model = NETWORKS["mlp"]()
    x = images(50, 1, 3, 4)
    net = prepared(model, glr_dist.Gaussian(0.5), x)
    z = model[1](x.flatten(1))
    expected = {"1": z.std(correction=0).item(), "3": model[3](model[2](z)).std(correction=0).item()}
    assert spreads(net, x) == pytest.approx(expected, rel=1e-5)
    assert spreads(net, x[:1] * 0)["1"] > 0


def test_a_block_may_be_smaller_than_the_largest():
    model = NETWORKS["mlp"]()
    x, y = images(5, 1, 3, 4), torch.zeros(5, dtype=torch.int64)
    net = prepared(model, glr_dist.Gaussian(0.5), x)
    made = shifted(net, x, net.scales(), **EXACT)
    assert LikelihoodRatio(made, net, 0).gradients(x[:3], y[:3], cross_entropy).shape == (3, 1, 3, 4)


def test_an_input_that_bypasses_the_sites_is_refused():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.site = nn.Linear(4, 4)

        def forward(self, x):
            return self.site(x.flatten(1)) + x.flatten(1)

    x = images(2, 1, 2, 2)
    net = prepared(Around(), glr_dist.Gaussian(0.5), x)
    with pytest.raises(SiteError, match="around the sites"):
        shifted(net, x, net.scales(), **EXACT)


def test_noisy_outputs_are_a_function_of_the_key():
    model = NETWORKS["mlp"]()
    x = images(4, 1, 3, 4)
    net = prepared(model, glr_dist.Gaussian(0.5), x)
    with torch.no_grad():
        first, again, other = (net.noisy(x, Key(0, step=step)) for step in (1, 1, 2))
        # The same by hand: noise at the two linear layers, in the order of the calls.
        z = model[1](x.flatten(1))
        z = z + 0.5 * torch.randn(z.shape, generator=generator(Key(0, step=1, site=0)))
        z = model[3](model[2](z))
        z = z + 0.5 * torch.randn(z.shape, generator=generator(Key(0, step=1, site=1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.allclose(first, z)


def test_averaged_scores_are_a_deterministic_function():
    model = NETWORKS["mlp"]()
    x = images(4, 1, 3, 4)
    net = prepared(model, glr_dist.Gaussian(0.5), x)
    averaged = Averaged(net, Key(5), 6)
    with torch.no_grad():
        assert torch.equal(averaged(x), averaged(x))
        passes = torch.stack([net.noisy(x, Key(5, shared_pass=i)) for i in range(6)])
        assert torch.allclose(averaged(x), passes.mean(0))
        assert not torch.equal(averaged(x), Averaged(net, Key(6), 6)(x))
