"""Flips of piecewise constant units: unbiased against sums over all levels of all units; refused elsewhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR, Gaussian
from glr_dist.errors import ConfigError, SiteError
from glr_dist.estimators.flips import Flips
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.estimators.unit_wise import Moves
from glr_dist.losses import LOSSES, expectation, zero_one
from glr_dist.nn import Heaviside, Quantise, Sign, Staircase
from glr_dist.noise import LAWS

from .test_unbiased import agrees, estimates, exact, glr, network, problem

UNITS: dict[str, tuple[Any, list[float]]] = {  # a unit, and its levels
    "threshold": (Heaviside(), [0.0, 1.0]),
    "sign": (Sign(), [-1.0, 1.0]),
    "staircase": (Staircase(3), [0.0, 1 / 3, 2 / 3, 1.0]),
    "quantiser": (Quantise(2), [0.0, 1 / 3, 2 / 3, 1.0]),
}
X = torch.tensor([[0.9, -0.3], [-0.4, 0.8]], dtype=torch.float64)
Y = torch.tensor([0, 1])


def reference(net: GLR, levels: list[float], law: str, learn: str) -> dict[str, Tensor]:
    """The gradient of J, with P(level) from the CDF for each hidden unit, and the expected 0-1 loss of all levels."""
    noise, thresholds = LAWS[law](), net.model[1].thresholds
    w0, b0, w2, b2 = (p.detach().clone().requires_grad_() for p in net.model.parameters())
    log0, log2 = (net.log_scales[site].detach().clone().requires_grad_() for site in ("0", "2"))
    risk_of = expectation(zero_one, noise)
    assert risk_of is not None
    with torch.enable_grad():
        z = X @ w0.T + b0
        edges = torch.stack([noise.cdf((t - z) / log0.exp()) for t in thresholds])
        cdf = torch.cat([torch.zeros_like(edges[:1]), edges, torch.ones_like(edges[:1])])
        probability = cdf[1:] - cdf[:-1]  # [levels, N, D]
        total = torch.zeros((), dtype=torch.float64)
        for chosen in itertools.product(range(len(levels)), repeat=2):
            h = torch.tensor([levels[c] for c in chosen], dtype=torch.float64).expand(2, -1)
            weight = probability[chosen[0], :, 0] * probability[chosen[1], :, 1]
            total = total + (weight * risk_of(h @ w2.T + b2, Y, log2.exp())).mean()
    names = ["0.weight", "0.bias", "2.weight", "2.bias", *(["scale 0", "scale 2"] if learn != "none" else [])]
    grads = torch.autograd.grad(total, [w0, b0, w2, b2, *([log0, log2] if learn != "none" else [])])
    return {"loss": total.detach()} | dict(zip(names, grads, strict=True))


def made(unit: str, law: str, learn: str, **options: Any) -> tuple[GLR, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 2), UNITS[unit][0], nn.Linear(2, 2)).double()
    x, y = X.repeat(512, 1), Y.repeat(512)
    chosen: dict[str, Any] = {"redraw": {"0": "flips", "*": "copies"}, "head": "expected", "example_block": 2048}
    net = GLR(model, LAWS[law](0.6, learn=learn), **{**chosen, "antithetic": LAWS[law]().symmetric, **options})
    net.prepare(x)
    if learn == "unit":
        net.log_scales["0"].data += torch.tensor([0.4, -0.3], dtype=torch.float64)
    return net, x, y


def laws_and_units(by_default: set[tuple[str, str]]) -> list[Any]:
    """All pairs of a law and a unit; those that do not run by default are long."""
    pairs = itertools.product(LAWS, UNITS)
    return [pytest.param(*pair, marks=[pytest.mark.long] * (pair not in by_default)) for pair in pairs]


# Each law and each unit once.
BY_DEFAULT = {("gaussian", "threshold"), ("laplace", "sign"), ("logistic", "quantiser"), ("gumbel", "staircase")}


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize(("law", "unit"), laws_and_units(BY_DEFAULT))
def test_flips_estimate_the_gradient_of_j(unit: str, law: str) -> None:
    learn = {"gaussian": "unit", "laplace": "none"}.get(law, "site")
    net, x, y = made(unit, law, learn)
    agrees(estimates(net, x, y, zero_one), reference(net, UNITS[unit][1], law, learn))


@pytest.mark.long
@pytest.mark.montecarlo
@pytest.mark.parametrize("kind", ["threshold", "threshold_zero_one"])
@pytest.mark.parametrize("options", [{}, {"passes": 2}, {"block_elements": 2**12, "items_per_site": 1}], ids=str)
def test_flips_before_a_sampled_head(kind: str, options: dict[str, Any]) -> None:
    p = problem(kind, "gaussian")
    x, y = p.x.repeat(1024, 1), p.y.repeat(1024)
    model = network(p.values, Heaviside())
    net = glr(model, p.values, "gaussian", "unit", x, redraw={"0": "flips", "*": "copies"}, copies=4, **options)
    agrees(estimates(net, x, y, LOSSES[p.loss]), exact(kind, "gaussian", "unit", "joint"), 0.04)


def test_one_step_by_hand() -> None:
    """δ of each unit is p(z/σ)/σ times the difference of the losses with the unit on and off, the other as drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), Heaviside(), nn.Linear(3, 2)).double()
    net = GLR(model, 0.5, redraw={"0": "flips", "*": "copies"}, head="expected")
    found = net.gradients(X, Y, zero_one)
    step = net.bind(X, Y, zero_one)
    assert step.copies["0"] == 3
    z = model[0](X).detach()
    v = z + 0.5 * step.shared_eps(net.network.sites[0], 0, 0)
    risk_of = step.head.estimate
    assert risk_of is not None
    delta = torch.zeros_like(z)
    for unit in range(3):
        loss = []
        for on in (0.0, 1.0):
            h = (v > 0).double()
            h[:, unit] = on
            loss.append(risk_of(model[2](h), Y, torch.tensor(0.5, dtype=torch.float64), step.shared_u(0, 0)))
        delta[:, unit] = Gaussian().density(z[:, unit] / 0.5) / 0.5 * (loss[1] - loss[0])
    torch.testing.assert_close(found.grads["0.weight"], delta.T @ X / 2)


# ---------------------------------------------------------------- refusals


class Relu(nn.Module):
    """Claims to be a threshold."""

    thresholds = (0.0,)

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class Mixed(nn.Module):
    """Piecewise constant, but each output depends on two units."""

    thresholds = (0.0,)

    def forward(self, x: Tensor) -> Tensor:
        return ((x > 0) & (x.roll(1, 1) > 0)).to(x.dtype)


REFUSED = {
    "a smooth unit": (nn.Sigmoid(), "a Sigmoid follows"),
    "not constant": (Relu(), "not constant between its thresholds"),
    "not for each unit alone": (Mixed(), "for each unit alone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_units_that_are_not_piecewise_constant_are_refused(case: str) -> None:
    unit, message = REFUSED[case]
    model = nn.Sequential(nn.Linear(2, 3), unit, nn.Linear(3, 2))
    with pytest.raises(SiteError, match=message):
        GLR(model, 0.5, redraw={"0": "flips", "*": "copies"}).prepare(X.float())


def test_flips_at_a_last_site_or_with_another_estimator_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3), Heaviside(), nn.Linear(3, 2))
    with pytest.raises(SiteError, match="no block of the chain follows"):
        GLR(model, 0.5, redraw="flips").prepare(X.float())
    for name in ("layerwise", "joint"):
        with pytest.raises(ConfigError, match=r"estimator\.redraw: 'flips' works only with 'conditional'"):
            GLR(model, 0.5, estimator=name, redraw="flips")


# ---------------------------------------------------------------- biased twins fail


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("bug", ["density at the other side", "a level too many", "scale forgotten"])
def test_faults_are_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = made("staircase", "gaussian", "unit")
    right = reference(net, UNITS["staircase"][1], "gaussian", "unit")
    moved = Flips.moves

    def wrong(
        self: Flips, noise: Any, z: Tensor, v: Tensor, scale: Tensor, block: DirectionBlock, drawn: Tensor | None
    ) -> Moves:
        if bug == "density at the other side":
            return moved(self, noise, -z, v, scale, block, drawn)
        if bug == "scale forgotten":
            return moved(self, noise, z, v, 1.3 * scale, block, drawn)
        found = moved(self, noise, z, v, scale, block, drawn)
        return found._replace(values=(found.values + 1 / 3).clamp(max=2.0))

    monkeypatch.setattr(Flips, "moves", wrong)
    with pytest.raises(AssertionError, match="z too large"):
        agrees(itertools.islice(estimates(net, x, y, zero_one), 48), right, 0.5)
