"""The head: what `auto` takes, what is refused, what the derivative of an expectation is, and that faults show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR, Gaussian, Gumbel, Laplace, config, losses
from glr_dist.errors import ConfigError, SiteError, UserError
from glr_dist.estimators import head as heads
from glr_dist.losses import cross_entropy, hinge, top5, zero_one
from glr_dist.misclassification import SPREAD, Misclassification
from glr_dist.nn import Heaviside
from glr_dist.noise import LAWS

from .test_unbiased import Case, agrees, check, estimates, exact, glr, network, problem

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def net_of(*after: nn.Module, **options: Any) -> GLR:
    """A threshold network with modules after its last site."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Heaviside(), nn.Linear(5, 3), *after)
    return GLR(model, **{"noise": 0.7, "copies": 8, "head": "auto", **options})


class Halved(nn.Module):
    """Changes the scores of some classes."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_tensor([1.0, 0.5, 1.0])


class Written(nn.Module):
    """Returns its input, and writes into it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_(max=10)


class Nested(nn.Module):
    """Its outputs are the logits of a site inside it, and a residual beside them."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.head, self.residual = nn.Linear(3, 3), residual

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.sign()) + (x if self.residual else 0)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.sign())


# modules after the last site, loss -> the head that `auto` takes
AUTO = {
    "0-1 loss": ((), zero_one, "expected"),
    "cross-entropy": ((), cross_entropy, "derivative"),
    "hinge": ((), hinge, "derivative"),
    "top 5": ((), top5, "sampled"),
    "a loss that offers nothing": ((), lambda outputs, targets: zero_one(outputs, targets), "sampled"),
    "identity, views": ((nn.Identity(), nn.Flatten(), nn.Unflatten(1, (3,))), zero_one, "expected"),
    "inside a block": ((Deep(),), zero_one, "expected"),
    "a residual": ((Nested(residual=True),), zero_one, "sampled"),
    "an activation": ((nn.Sigmoid(),), zero_one, "sampled"),
    "scores changed": ((Halved(),), zero_one, "sampled"),
    "changed in place": ((Written(),), zero_one, "sampled"),
    "a smooth loss of changed scores": ((Halved(),), cross_entropy, "sampled"),
}


@pytest.mark.parametrize("case", AUTO)
def test_auto_takes_the_best_that_loss_and_network_allow(case: str) -> None:
    after, loss, kind = AUTO[case]
    net = net_of(*after)
    assert net.bind(X, Y, loss).head.kind == kind
    net.gradients(X, Y, loss)


@pytest.mark.parametrize("case", [name for name, (*_, kind) in AUTO.items() if kind != "expected"])
def test_expected_is_refused_where_it_would_be_biased(case: str) -> None:
    after, loss, _ = AUTO[case]
    with pytest.raises((ConfigError, SiteError), match=r"estimator\.head: 'expected'"):
        net_of(*after, head="expected").gradients(X, Y, loss)


def test_a_wrapped_loss_offers_nothing() -> None:
    """`functools.wraps` copies the attributes of another loss."""
    import functools

    @functools.wraps(zero_one)
    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        return zero_one(outputs, targets) * targets

    assert net_of().bind(X, Y, weighted).head.kind == "sampled"


class Sometimes(nn.Module):
    """Returns its input on the first calls only."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        return x if self.left >= 0 else x.tanh()


def test_a_network_that_turns_out_to_change_its_logits_is_an_error() -> None:
    net = net_of(Sometimes(6), head="expected", verify=False)
    with pytest.raises(SiteError, match="something lies between '2' and the outputs"):
        for _ in range(6):
            net.estimate(X, Y, zero_one)


# ---------------------------------------------------------------- the derivative


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["none", "site", "unit"])
@pytest.mark.parametrize("estimator", ["conditional", "layerwise", "joint"])
def test_the_last_site_gets_the_derivative_of_the_expectation(estimator: str, learn: str) -> None:
    """One linear layer: the estimate is the exact gradient, for every law, without a draw."""
    torch.manual_seed(0)
    for law in LAWS.values():
        noise, antithetic = law(0.8, learn=learn), law().symmetric
        model = nn.Sequential(nn.Linear(4, 3)).double()
        net = GLR(model, noise, estimator=estimator, copies=4, head="expected", antithetic=antithetic)
        found = net.gradients(X.double(), Y, zero_one)
        x, weight, bias = X.double(), *(p.detach().clone().requires_grad_() for p in model.parameters())
        log_scale = net.log_scales["0"].detach().clone().requires_grad_()
        scale = log_scale.exp() if log_scale.dim() == 0 else log_scale.exp().expand(6, -1)
        with torch.enable_grad():
            risk = Misclassification(noise)(x @ weight.T + bias, Y, scale).mean()
        grads = torch.autograd.grad(risk, [weight, bias, log_scale])
        torch.testing.assert_close(found.grads["0.weight"], grads[0])
        torch.testing.assert_close(found.grads["0.bias"], grads[1])
        if estimator != "layerwise":  # its loss is that of the pass without noise
            torch.testing.assert_close(found.loss, risk.detach(), rtol=0, atol=3 * SPREAD)
        if learn != "none":
            torch.testing.assert_close(found.scales["0"], grads[2])


def test_the_derivative_is_laid_out_as_it_arrives_from_an_actor() -> None:
    """Sums over the rows of a transposed tensor have other bits."""
    net = net_of(head="expected")
    step = net.bind(X, Y, zero_one)
    assert heads.expected_gradient(step, torch.randn(6, 3), Y)[0].is_contiguous()


def test_cost_counts_no_draw_at_the_last_site() -> None:
    drawn, integrated = net_of(head="sampled"), net_of(head="expected")
    assert drawn.cost(X, Y, zero_one)[0] == 16
    assert integrated.cost(X, Y, zero_one)[0] == 8
    assert net_of(head="derivative", head_draws=2).cost(X, Y, cross_entropy)[0] == 10
    step = integrated.bind(X, Y, zero_one)
    items = list(integrated.estimator.items(step, 0))
    assert [len(item.directions) for item in items] == [1, 0]


def test_exact_head_of_version_0_4_is_the_derivative_at_all_copies() -> None:
    options = config.build(config.Estimator, {"copies": 12, "exact_head": True})
    assert (options.head, options.head_draws) == ("derivative", 12)
    assert config.build(config.Estimator, {"exact_head": False}) == config.Estimator()
    with pytest.raises(ConfigError, match=r"estimator\.exact_head: 'yes' is not allowed"):
        config.build(config.Estimator, {"exact_head": "yes"}, "estimator.")
    with pytest.raises(ConfigError, match=r"exact_head: means estimator\.head 'derivative'"):
        config.build(config.Estimator, {"exact_head": True, "head": "sampled"}, "estimator.")


# ---------------------------------------------------------------- a loss of one's own


class Asymmetric:
    """A wrong class 0 costs three times as much. It offers its expectation, under Gaussian noise alone."""

    factor = 3.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return zero_one(outputs, targets) * torch.where(targets == 0, 3.0, 1.0).to(outputs.dtype)

    def expected(self, law: Any) -> losses.Expectation | None:
        if law.law != "gaussian":
            return None
        inner = losses.expectation(zero_one, law)
        assert inner is not None
        return lambda z, y, scale: inner(z, y, scale) * torch.where(y == 0, self.factor, 1.0).to(z.dtype)


class Wrong(Asymmetric):
    factor = 2.5


def test_a_loss_of_ones_own_offers_its_expectation() -> None:
    assert net_of().bind(X, Y, Asymmetric()).head.kind == "expected"
    assert net_of(noise=Laplace(0.7)).bind(X, Y, Asymmetric()).head.kind == "sampled"
    net_of().estimate(X, Y, Asymmetric())


def test_a_wrong_expectation_is_an_error_before_the_first_step() -> None:
    with pytest.raises(UserError, match="loss: its `expected` gives"):
        net_of().estimate(X, Y, Wrong())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("learn", ["site", "unit"])
def test_the_expectations_of_the_package_pass_the_check(law: str, learn: str) -> None:
    noise = LAWS[law](1.3, learn=learn)
    net = net_of(noise=noise, antithetic=noise.symmetric, head="expected")
    net.gradients(X, Y, zero_one)


def test_the_losses_of_a_wrapped_expectation_are_exact() -> None:
    """Only the package's own expectation has an estimate, which it is known to agree with."""
    assert net_of().bind(X, Y, zero_one).head.estimate is not None
    assert net_of().bind(X, Y, Asymmetric()).head.estimate is None
    laplace = net_of(noise=Laplace(0.7)).bind(X, Y, zero_one)
    assert laplace.head.kind == "expected"
    assert laplace.head.estimate is None
    assert len(laplace.shared_tape(0, 0, noisy=True).u) == 0


def test_the_estimates_of_tokens_are_shifted_apart() -> None:
    offered = losses.expectation(zero_one, Gaussian())
    assert isinstance(offered, losses._ExpectedZeroOne)
    z, y, u = torch.zeros(1, 32, 10).double(), torch.zeros(1, 32).long(), torch.arange(0, 1, 1 / 64).double()[:, None]
    scale = torch.tensor(1.0).double()
    one = torch.stack([offered.estimate(z[:, 0], y[:, 0], scale, each) for each in u])
    many = torch.stack([offered.estimate(z, y, scale, each) for each in u])
    assert (many - offered(z, y, scale)).abs().max() < (one - offered(z[:, 0], y[:, 0], scale)).abs().max() / 5


def test_a_custom_law_offers_its_cdf() -> None:
    class Normal:
        """Gaussian noise once more, as an object of one's own."""

        def sample(self, shape: Any, stream: torch.Generator, dtype: torch.dtype) -> Tensor:
            return Gaussian().sample(shape, stream, dtype)

        def score(self, eps: Tensor) -> Tensor:
            return eps

    class WithCDF(Normal):
        quantile, cdf, density = Gaussian().quantile, Gaussian().cdf, Gaussian().density

    class WrongCDF(WithCDF):
        cdf = Laplace().cdf

    class WrongDensity(WithCDF):
        density = Laplace().density

    assert net_of(noise=Normal()).bind(X, Y, zero_one).head.kind == "sampled"
    assert net_of(noise=WithCDF()).bind(X, Y, zero_one).head.kind == "expected"
    with pytest.raises(ConfigError, match="cdf"):
        net_of(noise=WrongCDF())
    with pytest.raises(ConfigError, match="density"):
        net_of(noise=WrongDensity())


def test_tokens_and_pixels_are_means_of_expectations() -> None:
    z = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 1, 2, 0, losses.IGNORED], [1, 1, 1, losses.IGNORED, losses.IGNORED]])
    for scale in (torch.tensor(0.6), torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) + 0.5):
        expected = losses.expectation(zero_one, Gaussian())
        assert expected is not None
        rows = Misclassification(Gaussian())(
            z.flatten(0, 1), y.clamp(min=0).flatten(), scale.expand(2, 5, 3).flatten(0, 1)
        )
        counts = y != losses.IGNORED
        means = (rows.view(2, 5) * counts).sum(1) / counts.sum(1)
        torch.testing.assert_close(expected(z, y, scale), means, rtol=0, atol=1e-5)
        pixels = scale.T if scale.dim() else scale
        torch.testing.assert_close(expected(z.movedim(2, 1), y, pixels), means, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- biased twins fail


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("name", ["conditional", pytest.param("joint", marks=pytest.mark.long)])
def test_integrating_out_what_is_not_the_output_is_biased(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a module after the last site, which the check of the memory refuses, the estimate is another one."""
    p = problem("threshold_zero_one", "gaussian")
    case = Case("gaussian", name, "iid", True, "shared", "sampled", "unit")
    x, y = p.x.repeat(2048, 1), p.y.repeat(2048)

    class Skewed(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            return v * v.new_tensor([1.0, 0.2]) - 0.3

    def net(kind: str) -> GLR:
        model = nn.Sequential(*network(p.values, Heaviside()), Skewed())
        estimator = case.estimator().model_copy(update={"head": kind, "example_block": 4096, "block_elements": 2**20})
        return glr(model, p.values, "gaussian", "unit", x, estimator=estimator, verify=False)

    drawn = [step for step, _ in zip(estimates(net("sampled"), x, y, zero_one), range(400), strict=False)]
    reference = {key: torch.stack([step[key] for step in drawn]).mean(0) for key in drawn[0]}
    monkeypatch.setattr(heads.LastLogits, "are", lambda *_: True)
    biased = net("expected")
    biased.network.head_shape = torch.Size([2])
    with pytest.raises(AssertionError, match="z too large"):
        agrees(estimates(biased, x, y, zero_one), reference, 0.05)


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("name", ["conditional", "joint"])
def test_an_expectation_that_ignores_the_scale_of_a_unit_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Misclassification.__call__
    monkeypatch.setattr(
        Misclassification,
        "__call__",
        lambda self, z, y, s, u=None: wrong(self, z, y, s.mean(-1, keepdim=True).expand_as(z), u),
    )
    case = Case("gaussian", name, "iid", True, "shared", "expected", "unit")
    with pytest.raises(UserError, match="its `expected` gives"):
        check("threshold_zero_one", case)
    monkeypatch.setattr("glr_dist.glr.check_expectation", lambda step: None)
    with pytest.raises(AssertionError, match="z too large"):
        check("threshold_zero_one", case)


@pytest.mark.slow
@pytest.mark.montecarlo
def test_noise_that_is_integrated_out_and_drawn_as_well_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the last site's noise is in the expectation, and in the logits too."""
    import glr_dist.estimators.step as steps

    def noisy_too(self: Any, shared_pass: int, example_block: int, kept: Any = None) -> Any:
        n = self.examples_in(example_block)
        return lambda site, z: (
            z.view(-1, n, *site.shape) + self.shared_eps(site, shared_pass, example_block) * self.scales[site.name]
        ).view(z.shape)

    monkeypatch.setattr(steps.Step, "shared_noise", noisy_too)
    case = Case("gaussian", "conditional", "iid", True, "shared", "expected", "unit")
    with pytest.raises(AssertionError, match="z too large"):
        check("threshold_zero_one", case)


@pytest.mark.slow
@pytest.mark.montecarlo
def test_the_reference_of_the_twins_is_the_one_that_passes() -> None:
    """Without the bugs the same case agrees."""
    assert exact("threshold_zero_one", "gaussian", "unit", "joint").keys()
    check("threshold_zero_one", Case("gaussian", "conditional", "iid", True, "shared", "expected", "unit"))


def test_gumbel_noise_needs_single_draws() -> None:
    with pytest.raises(ConfigError, match=r"estimator\.antithetic: pairs"):
        net_of(noise=Gumbel(0.7))
    net_of(noise=Gumbel(0.7), antithetic=False, head="expected").estimate(X, Y, zero_one)
