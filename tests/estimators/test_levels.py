"""Scores averaged given the levels of units: the means of the law, unbiased, of less variance; refused elsewhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR, Gaussian, Laplace
from glr_dist.errors import ConfigError, SiteError
from glr_dist.estimators import levels
from glr_dist.estimators.levels import level_scores
from glr_dist.estimators.step import Scores
from glr_dist.losses import LOSSES, zero_one
from glr_dist.nn import Heaviside
from glr_dist.noise import LAWS

from .test_flips import REFUSED, UNITS, X, Y, laws_and_units, reference
from .test_flips import made as flips_made
from .test_unbiased import agrees, estimates, exact, glr, network, problem

# ---------------------------------------------------------------- the means

GRID = 200_001  # quantiles of ε, at equal distances
THRESHOLDS = {"one": (0.2,), "two": (-0.5, 0.7), "many": tuple(torch.linspace(-2, 2, 17).tolist())}


def mean_by_level(law: str, z: Tensor, scale: Tensor, thresholds: tuple[float, ...], signs: int) -> tuple[Tensor, ...]:
    """Scores [R, n, D] that are averaged given the levels by counting; and the noisy logits [S, R, n, D]."""
    noise = LAWS[law]()
    eps = noise.quantile((torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID)
    score = noise.score(eps)
    v = torch.stack([z + sign * scale * eps[:, None, None] for sign in (1, -1)[:signs]])
    number = torch.zeros(v.shape[1:], dtype=torch.long)
    for level in torch.bucketize(v, v.new_tensor(thresholds)):
        number = number * (len(thresholds) + 1) + level
    most = (len(thresholds) + 1) ** signs
    counts = torch.zeros(most, *z.shape, dtype=torch.float64).scatter_add_(0, number, torch.ones_like(v[0]))
    means = []
    for each in (score, eps * score - 1):
        sums = torch.zeros_like(counts).scatter_add_(0, number, each[:, None, None].expand_as(v[0]).contiguous())
        means.append((sums / counts.clamp(min=1)).gather(0, number))
    return *means, v, counts.gather(0, number)


def full(found: Scores) -> Tensor:
    """s(ε), with the factor that all draws share."""
    return found.by_z if found.factor is None else found.by_z * found.factor


def scores(*of: Any) -> tuple[Tensor, Tensor]:
    """s(ε) and ε s(ε) - 1, averaged given the levels."""
    found = level_scores(*of, learned=True)
    assert found.by_scale is not None
    return full(found), found.by_scale


@pytest.mark.parametrize("cut", THRESHOLDS)
@pytest.mark.parametrize(
    ("law", "signs"), [(law, signs) for law in LAWS for signs in (1, 2) if signs == 1 or LAWS[law]().symmetric]
)
def test_scores_are_the_means_of_the_law_given_the_levels(law: str, cut: str, signs: int) -> None:
    noise, thresholds = LAWS[law](), THRESHOLDS[cut]
    z = torch.tensor([[0.0, 0.4, -1.7], [2.5, -0.2, 0.9]], dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 1.3], dtype=torch.float64)
    by_z, by_scale, v, counts = mean_by_level(law, z, scale, thresholds, signs)
    often = counts > 500  # the tails of the grid are coarse
    drawn = torch.randperm(GRID, generator=torch.Generator().manual_seed(0))
    few, all_of_them = drawn[:6], drawn  # fewer directions than combinations of levels, and more
    for rows in (few, all_of_them):
        found = scores(noise, z, scale, v[:, rows], thresholds)
        for mean, right in zip(found, (by_z, by_scale), strict=True):
            assert ((mean - right[rows]).abs()[often[rows]] < 0.02 * (1 + right[rows].abs()[often[rows]])).all()
        alone = level_scores(noise, z, scale, v[:, rows], thresholds, learned=False)
        assert alone.by_scale is None
        assert torch.equal(full(alone), found[0])


@pytest.mark.parametrize("law", LAWS)
def test_single_precision_is_enough_far_from_the_threshold(law: str) -> None:
    noise = LAWS[law]()
    signs = 2 if noise.symmetric else 1
    z = torch.tensor([[-4.0, -2.0, -1e-4, 0.0, 1e-4, 3.0, 5.0]])
    eps = noise.quantile(torch.rand(20_000, *z.shape, generator=torch.Generator().manual_seed(0)).double()).float()
    scale = torch.tensor(1.0)
    v = torch.stack([z + eps, z - eps][:signs])
    found = scores(noise, z, scale, v, (0.0,))
    exactly = scores(noise, z.double(), scale.double(), v.double(), (0.0,))
    for mean, right in zip(found, exactly, strict=True):
        assert mean.dtype == torch.float32
        assert mean.isfinite().all()
        torch.testing.assert_close(mean.double(), right, rtol=2e-3, atol=1e-4)


def test_a_unit_that_the_noise_does_not_move_has_no_score() -> None:
    z = torch.tensor([[1e3, -1e3]])
    v = torch.stack([z + 1, z - 1]).view(2, 1, 1, 2)
    for pairs in (v, v[:1]):
        for found in scores(Gaussian(), z, torch.tensor(1.0), pairs, (0.0,)):
            assert not found.any()


# ---------------------------------------------------------------- unbiased


def made(unit: str, law: str, learn: str, **options: Any) -> tuple[GLR, Tensor, Tensor]:
    """The network of the flips, with levels at its hidden site."""
    chosen = {"redraw": {"0": "levels", "*": "copies"}, "copies": 8, "example_block": 128}
    return flips_made(unit, law, learn, **{**chosen, **options})


# Each law and each unit once.
BY_DEFAULT = {("gaussian", "threshold"), ("laplace", "quantiser"), ("logistic", "sign"), ("gumbel", "staircase")}


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize(("law", "unit"), laws_and_units(BY_DEFAULT))
def test_levels_estimate_the_gradient_of_j(law: str, unit: str) -> None:
    learn = {"gaussian": "unit", "laplace": "none"}.get(law, "site")
    net, x, y = made(unit, law, learn)
    agrees(estimates(net, x, y, zero_one), reference(net, UNITS[unit][1], law, learn), 0.05)


OPTIONS: dict[str, dict[str, Any]] = {
    "one draw at a time": {"antithetic": False, "sampler": "iid"},
    "frames without pairs": {"antithetic": False, "copies": 4},
    "sobol": {"sampler": "sobol"},
    "leave-one-out": {"baseline": "leave_one_out", "sampler": "iid"},
    "two passes": {"passes": 2},
    "in parts": {"block_elements": 2**11, "items_per_site": 2},
}
LONG_OPTIONS = ("frames without pairs", "two passes", "in parts")


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "options", [pytest.param(each, marks=[pytest.mark.long] * (each in LONG_OPTIONS)) for each in OPTIONS]
)
def test_with_other_options(options: str) -> None:
    net, x, y = made("threshold", "gaussian", "unit", **OPTIONS[options])
    agrees(estimates(net, x, y, zero_one), reference(net, UNITS["threshold"][1], "gaussian", "unit"), 0.03)


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("objective", ["joint", pytest.param("layerwise", marks=pytest.mark.long)])
def test_before_a_sampled_head(objective: str) -> None:
    p = problem("threshold", "gaussian")
    x, y = p.x.repeat(1024, 1), p.y.repeat(1024)
    estimator = {"joint": "conditional", "layerwise": "layerwise"}[objective]
    ways = {"redraw": {"0": "levels", "*": "copies"}, "copies": 8, "estimator": estimator}
    net = glr(network(p.values, Heaviside()), p.values, "gaussian", "none", x, **ways)
    agrees(estimates(net, x, y, LOSSES[p.loss]), exact("threshold", "gaussian", "none", objective), 0.04)


# ---------------------------------------------------------------- less variance


def spread(net: GLR, x: Tensor, y: Tensor, steps: int = 200) -> Tensor:
    """Sum of the variances of the elements of the first layer's gradient."""
    found = [step["0.weight"].flatten() for step in itertools.islice(estimates(net, x, y, zero_one), steps)]
    return torch.stack(found).var(0).sum()


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("options", [{"sampler": "iid"}, {"sampler": "iid", "antithetic": False}, {}], ids=str)
def test_they_have_less_variance_than_copies(options: dict[str, Any]) -> None:
    """The more units lie far from their threshold, the less: here two standard deviations of the noise."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 4).double(), torch.arange(64) % 3
    first, last = nn.Linear(4, 32), nn.Linear(32, 3)
    model = nn.Sequential(first, Heaviside(), last).double()
    with torch.no_grad():
        noise = Gaussian(float(first(x).std()) / 2)
    found = {
        way: spread(GLR(model, noise, redraw={"0": way, "*": "copies"}, copies=8, head="expected", **options), x, y)
        for way in ("copies", "levels")
    }
    assert found["levels"] < 0.5 * found["copies"]


# ---------------------------------------------------------------- where they are taken, and where refused


def test_auto_takes_them_where_units_are_piecewise_constant() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), Heaviside(), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)
    )
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4) % 3
    step = GLR(model, 0.5, copies=8, redraw="auto").bind(x, y)
    assert step.levels == {"0": (0.0,)}
    assert set(step.spaces) == {"2"}
    assert not GLR(model, 0.5, copies=8, redraw="copies").bind(x, y).levels
    within = GLR(model, 0.5, copies=8, redraw="auto", baseline="leave_one_out").bind(x, y)
    assert not within.levels
    assert set(within.spaces) == {"0", "2"}
    assert GLR(model, Laplace(0.5), copies=8, redraw="auto", baseline="leave_one_out").bind(x, y).levels


def test_they_take_no_learned_feedback() -> None:
    net = GLR(nn.Sequential(nn.Linear(2, 3), Heaviside(), nn.Linear(3, 2)), 0.5, redraw="auto", copies=4,
              feedback="control_variate", head="derivative")  # fmt: skip
    net.estimate(X.float(), Y)
    assert not net.bind(X.float(), Y).feedback


@pytest.mark.parametrize("case", REFUSED)
def test_units_that_are_not_piecewise_constant_are_refused(case: str) -> None:
    unit, message = REFUSED[case]
    model = nn.Sequential(nn.Linear(2, 3), unit, nn.Linear(3, 2))
    with pytest.raises(SiteError, match=message):
        GLR(model, 0.5, redraw={"0": "levels", "*": "copies"}).prepare(X.float())
    GLR(model, 0.5, redraw="auto").prepare(X.float())


def test_a_law_without_a_density_is_refused() -> None:
    class Triangular:
        law = "triangular"

        def sample(self, shape: Any, stream: Any, dtype: Any) -> Tensor:
            return torch.randn(shape, generator=stream, dtype=dtype)

        def score(self, eps: Tensor) -> Tensor:
            return eps

    model = nn.Sequential(nn.Linear(2, 3), Heaviside(), nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="'levels' needs a law with density"):
        GLR(model, Triangular(), redraw={"0": "levels", "*": "copies"}, sampler="iid").prepare(X.float())
    assert not GLR(model, Triangular(), redraw="auto", sampler="iid").bind(X.float(), Y).levels


# ---------------------------------------------------------------- biased twins fail


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("bug", ["a pair as one draw", "scale forgotten", "levels of the shared pass"])
def test_faults_are_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = made("staircase", "gaussian", "unit")
    right = reference(net, UNITS["staircase"][1], "gaussian", "unit")

    def wrong(noise: Any, z: Tensor, scale: Tensor, v: Tensor, *rest: Any, **options: Any) -> Any:
        if bug == "a pair as one draw":
            v = v[:1]
        elif bug == "scale forgotten":
            scale = 1.3 * scale
        else:
            z = z + 0.3
        return level_scores(noise, z, scale, v, *rest, **options)

    monkeypatch.setattr(levels, "level_scores", wrong)
    with pytest.raises(AssertionError, match="z too large"):
        agrees(itertools.islice(estimates(net, x, y, zero_one), 96), right, 0.5)
