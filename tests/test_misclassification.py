"""The probability of a wrong class under noisy scores, against fine numerical integrals and closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from glr_dist.errors import UserError
from glr_dist.misclassification import _SHIFTED_TAIL, ERROR, SPREAD, Misclassification, _ends, _trapezoid
from glr_dist.noise import LAWS, Gaussian

ENDS = {"gaussian": (-8, 8), "laplace": (-30, 30), "logistic": (-35, 35), "gumbel": (-4, 35)}


def by_integration(z: Tensor, y: int, scale: Tensor, law: str) -> float:
    """1 - ∫ p(t) Π F((z_y + σ_y t - z_j) / σ_j) dt, adaptively between all kinks; z [C], scale [C]."""
    noise, others = LAWS[law](), [j for j in range(len(z)) if j != y]

    def integrand(t: float) -> float:
        ahead = (z[y] + scale[y] * t - z[others]) / scale[others]
        return float(noise.density(torch.tensor(t, dtype=torch.float64)) * noise.cdf(ahead).prod())

    low, high = ENDS[law]
    kinks = [0.0, *((z[others] - z[y]) / scale[y]).tolist()]
    points = sorted({low, high, *(min(max(kink, low), high) for kink in kinks), *np.linspace(low, high, 9)})
    pieces = [integrate.quad(integrand, a, b, epsabs=1e-9)[0] for a, b in itertools.pairwise(points)]
    return 1 - math.fsum(pieces)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.0, 2.5, 8.0])
@pytest.mark.parametrize("classes", [2, 5, pytest.param(10, marks=pytest.mark.long)])
@pytest.mark.parametrize("law", LAWS)
def test_error_is_at_most_the_stated_one(law: str, classes: int, ratio: float) -> None:
    stream = torch.Generator().manual_seed(classes)
    rows = 6
    spread = torch.tensor([0.3, 1.0, 1.0, 3.0, 0.0, 6.0], dtype=torch.float64)[:, None]
    z = torch.randn(rows, classes, dtype=torch.float64, generator=stream) * spread
    y = torch.randint(0, classes, (rows,), generator=stream)
    u = torch.rand(rows, classes, dtype=torch.float64, generator=stream)
    u[:, 0], u[:, -1] = 0, 1  # the ratio is reached
    scale = 0.7 * ratio**u
    found = Misclassification(LAWS[law]())(z, y, torch.tensor(0.7, dtype=torch.float64) if ratio == 1 else scale)
    for row in range(rows):
        exact = by_integration(z[row], int(y[row]), scale[row], law)
        assert abs(found[row].item() - exact) <= ERROR, (row, found[row].item(), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_far_apart_are_certain(dtype: torch.dtype) -> None:
    """P(v_1 > v_0) = Φ((z_1 - z_0) / (σ √2)); beyond `Gaussian.far` it counts as 0 or 1."""
    sigma = torch.tensor(0.5, dtype=dtype)
    apart = torch.linspace(-20, 20, 401, dtype=dtype)
    z, y = torch.stack([apart * sigma, torch.zeros_like(apart)], 1).requires_grad_(), torch.zeros(401, dtype=torch.long)
    found = Misclassification(Gaussian())(z, y, sigma)
    torch.testing.assert_close(found, torch.special.ndtr(-apart / 2**0.5), rtol=0, atol=ERROR)
    far = apart.abs() > Gaussian.far + 1e-3
    torch.testing.assert_close(found[far], (apart[far] < 0).to(dtype), rtol=0, atol=4 * torch.finfo(dtype).eps)
    (slope,) = torch.autograd.grad(found.sum(), z)
    assert not slope[far].any()
    assert slope[~far & (apart.abs() < 5), 0].lt(0).all()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_a_class_out_of_range_is_refused(law: str, shifted: bool) -> None:
    z, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    with pytest.raises(RuntimeError, match="out of bounds"):
        Misclassification(LAWS[law]())(z, y, torch.tensor(1.0), torch.rand(5) if shifted else None)


def test_a_law_derived_from_gaussian_noise_may_have_heavier_tails() -> None:
    @dataclass(frozen=True)
    class Wide(Gaussian):
        def quantile(self, u: Tensor) -> Tensor:
            return 10 * super().quantile(u)

        def cdf(self, eps: Tensor) -> Tensor:
            return super().cdf(eps / 10)

        def density(self, eps: Tensor) -> Tensor:
            return super().density(eps / 10) / 10

    z, y = torch.tensor([[0.0, 9.0]], dtype=torch.float64), torch.tensor([0])
    found = Misclassification(Wide())(z, y, torch.tensor(1.0, dtype=torch.float64))
    assert found.item() == pytest.approx(stats.norm.cdf(9 / (10 * 2**0.5)), abs=ERROR)


def test_no_shifted_node_needs_a_subnormal_number() -> None:
    """They slow a CPU down: exp(-ε²/2) is a normal float32 at every node of a redraw's loss."""
    low, high = _ends(Gaussian(), _SHIFTED_TAIL)
    farthest = Gaussian.far + max(-low, high)
    assert math.exp(-(farthest**2) / 2) > torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("law", LAWS)
def test_all_examples_of_equal_scores_are_wrong_with_one_probability(law: str) -> None:
    found = Misclassification(LAWS[law]())(torch.zeros(5, 5), torch.arange(5), torch.tensor(2.0))
    torch.testing.assert_close(found, torch.full((5,), 0.8), rtol=0, atol=ERROR)


def test_two_classes_under_gaussian_noise() -> None:
    """v_1 - v_0 is Gaussian: P = Φ((z_other - z_y) / √(σ_0² + σ_1²)), also for its derivatives."""
    z = torch.tensor([[0.4, -1.1], [2.0, 2.5], [-3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([[0.8, 1.7]], dtype=torch.float64).expand(3, -1).clone().requires_grad_()
    y = torch.tensor([0, 0, 1])
    other = z.gather(1, 1 - y[:, None])[:, 0] - z.gather(1, y[:, None])[:, 0]
    exact = torch.special.ndtr(other / scale.square().sum(1).sqrt())
    found = Misclassification(Gaussian())(z, y, scale)
    torch.testing.assert_close(found, exact, rtol=0, atol=ERROR)
    for a, b in zip(
        torch.autograd.grad(found.sum(), [z, scale]), torch.autograd.grad(exact.sum(), [z, scale]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=5 * ERROR)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_derivatives_are_those_of_finite_differences(law: str, unit: bool) -> None:
    """Also where some F underflow, and for logits that are far apart."""
    wrong = Misclassification(LAWS[law]())
    z = torch.tensor([[0.3, -0.8, 0.1], [40.0, 0.0, -40.0], [0.0, 3.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([2, 0, 0])
    scale = torch.full((3, 3) if unit else (), 0.9, dtype=torch.float64)
    if unit:
        scale = scale * torch.tensor([1.0, 1.3, 0.8])
    assert torch.autograd.gradcheck(
        lambda z, s: wrong(z, y, s), [z.requires_grad_(), scale.requires_grad_()], eps=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_single_precision_agrees_with_double(law: str) -> None:
    z = 5 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    y, scale = torch.arange(50) % 10, torch.linspace(0.5, 1.0, 10).expand(50, -1)
    wrong = Misclassification(LAWS[law]())
    torch.testing.assert_close(wrong(z, y, scale).double(), wrong(z.double(), y, scale.double()), rtol=0, atol=1e-5)
    with torch.enable_grad():
        leaf = z.requires_grad_()
        (grad,) = torch.autograd.grad(wrong(leaf, y, scale).sum(), leaf)
    assert grad.isfinite().all()


def test_groups_of_nodes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 4
    whole = Misclassification(Gaussian())(z, y, torch.tensor(1.0))
    monkeypatch.setattr("glr_dist.misclassification._ELEMENTS", 3 * z.numel())
    torch.testing.assert_close(Misclassification(Gaussian())(z, y, torch.tensor(1.0)), whole, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_more_precise_rules_have_more_nodes_and_hopeless_scales_are_refused() -> None:
    nodes = [len(_trapezoid(Gaussian(), 10, ratio)[0]) for ratio in (1.0, 2.0, 8.0)]
    assert nodes == sorted(set(nodes))
    assert nodes[0] <= 20
    scale = torch.tensor([[1e-4, 1.0, 1.0]])
    with pytest.raises(UserError, match="nodes under gaussian noise"):
        Misclassification(Gaussian())(torch.zeros(1, 3), torch.tensor([0]), scale)


def test_too_few_nodes_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the first test: a rule that is too coarse has an error above the stated one."""
    monkeypatch.setattr("glr_dist.misclassification.ERROR", 3e-2)
    z, y = torch.tensor([[0.5, 0.0, 0.2, -0.3]], dtype=torch.float64), torch.tensor([0])
    scale = torch.tensor([1.0, 0.3, 0.3, 0.3], dtype=torch.float64)
    found = Misclassification(Gaussian())(z, y, scale[None])
    assert abs(found.item() - by_integration(z[0], 0, scale, "gaussian")) > ERROR


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_nodes_that_a_random_number_shifts_give_the_probability_on_average(law: str, unit: bool) -> None:
    """The mean over u is exact, though each of the results is rough."""
    stream = torch.Generator().manual_seed(3)
    z = 2 * torch.randn(200, 10, dtype=torch.float64, generator=stream)
    y = torch.randint(0, 10, (200,), generator=stream)
    scale = torch.tensor(0.7, dtype=torch.float64)
    if unit:
        scale = 0.7 + 0.5 * torch.rand(200, 10, dtype=torch.float64, generator=stream)
    wrong = Misclassification(LAWS[law]())
    exact = wrong(z, y, scale)
    places = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    found = torch.stack([wrong(z, y, scale, u.expand(200)) for u in places])
    torch.testing.assert_close(found.mean(0), exact, rtol=0, atol=3 * ERROR)
    assert found.std(0).max() <= 1.2 * SPREAD
    if not wrong.law.kinked and not (wrong.law.max_stable and not unit):
        assert found.std(0).max() > 10 * ERROR  # another rule than that of many nodes
        (number, _, _), (nodes, _) = next(iter(wrong._cells.values())), next(iter(wrong._trapezoids.values()))
        assert number <= len(nodes) / 2
