"""Differences: unbiased against closed forms, in every position, at any module; refused where they would be wrong."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR, Gaussian, Laplace, Logistic
from glr_dist.errors import ConfigError, SiteError
from glr_dist.estimators import unit_wise
from glr_dist.estimators.differences import Differences
from glr_dist.estimators.unit_wise import ELEMENTWISE, Moves, next_linear
from glr_dist.losses import LOSSES, cross_entropy, zero_one
from glr_dist.nn import Heaviside
from glr_dist.streams import Key, generator

from .test_unbiased import agrees, estimates, exact, glr, network, problem

DIFFERENCES = {"0": "differences", "*": "copies"}


def made(kind: str, law: str, **options: Any) -> tuple[GLR, Tensor, Tensor]:
    p = problem(kind, law)
    x, y = p.x.repeat(1024, 1), p.y.repeat(1024)
    model = network(p.values, nn.Sigmoid() if p.smooth else Heaviside())
    chosen: dict[str, Any] = {"redraw": DIFFERENCES, "copies": 4, "example_block": 2048, **options}
    return glr(model, p.values, law, "none", x, **chosen), x, y


def right(kind: str, law: str) -> dict[str, Tensor]:
    return {name: g for name, g in exact(kind, law, "site", "joint").items() if not name.startswith("scale")}


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("kind", ["sigmoid", "threshold", "threshold_zero_one"])
def test_they_estimate_the_gradient_of_j(kind: str, law: str) -> None:
    """Of smooth units, of jumps, and of the 0-1 loss with its noise integrated out."""
    options = {"head": "expected"} if kind == "threshold_zero_one" else {}
    net, x, y = made(kind, law, **options)
    agrees(estimates(net, x, y, LOSSES[problem(kind, law).loss]), right(kind, law), 0.04)


@pytest.mark.long
@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "options",
    [
        {"passes": 2},
        {"block_elements": 2**11, "items_per_site": 1},
        {"head": "derivative", "head_draws": 2},
        {"redraw": "differences"},  # the head too
    ],
    ids=str,
)
def test_however_the_work_is_cut(options: dict[str, Any]) -> None:
    net, x, y = made("sigmoid", "gaussian", **options)
    agrees(estimates(net, x, y, cross_entropy), right("sigmoid", "gaussian"), 0.04)


def test_one_step_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 2)).double()
    net = GLR(model, 0.5, redraw=DIFFERENCES, head="derivative", seed=3)
    x, y = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    found = net.gradients(x, y)
    step = net.bind(x, y)
    assert step.copies["0"] == 6
    first, last = net.network.sites
    block = next(net.estimator.items(step, 0)).directions[0]
    half = Differences().draw(Gaussian(), step.key(0, 0, 0), block, 4, torch.float64, torch.device("cpu"))
    assert half is not None
    z = model[0](x).detach()
    v, last_noise = z + 0.5 * step.shared_eps(first, 0, 0), 0.5 * step.shared_eps(last, 0, 0)
    delta = torch.zeros_like(z)
    for unit in range(3):
        losses = []
        for sign in (1, -1):
            moved = v.clone()
            moved[:, unit] = z[:, unit] + sign * 0.5 * half[unit]
            losses.append(cross_entropy(model[2](model[1](moved)) + last_noise, y))
        delta[:, unit] = (losses[0] - losses[1]) / (2 * 0.5 * half[unit])
    torch.testing.assert_close(found.grads["0.weight"], (delta.T @ x / 4).detach())


def test_a_linear_loss_has_no_variance() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Identity(), nn.Linear(4, 1))
    net = GLR(model, 2.0, redraw="differences")
    x, y = torch.randn(6, 5), torch.zeros(6)
    grads = net.gradients(x, y, lambda z, _: z[:, 0]).grads
    names = ["0.weight", "0.bias", "2.bias"]  # that of 2.weight is the noisy state of the units
    expected = torch.autograd.grad(model(x).mean(), [model.get_parameter(name) for name in names])
    for name, its in zip(names, expected, strict=True):
        torch.testing.assert_close(grads[name], its, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- what follows a site


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_elementwise_modules_are(kind: type[nn.Module]) -> None:
    """A unit that moves changes the output at its own place alone, in every shape."""
    module = kind(0.1, 0.0) if kind is nn.Threshold else kind()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[:, 2] += 3
    places = (module(moved) != module(x)).any(0).nonzero().flatten().tolist()
    assert places in ([2], [])
    assert torch.equal(module(x.T.contiguous()[:, None]), module(x).T[:, None])


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model[1].register_forward_hook(lambda module, args, output: output.flip(1))
    return model


def patched(place: int) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))
    forward, adapter = model[place].forward, torch.randn(4, 3)
    model[place].forward = lambda x: forward(x.softmax(1)) if place == 1 else forward(x) + x @ adapter
    return model


OTHERS = {
    "units with a forward of their own": lambda: patched(1),
    "a layer with a forward of its own": lambda: patched(2),
    "softmax": lambda: nn.Sequential(nn.Linear(5, 4), nn.Softmax(1), nn.Linear(4, 3)),
    "two modules between": lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Tanh(), nn.Linear(4, 3)),
    "a layer of another type": lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Doubled(4, 3)),
    "a hook": hooked,
    "tokens": lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Flatten()),
}


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("other", OTHERS)
def test_other_modules_are_replayed_as_they_are(other: str) -> None:
    torch.manual_seed(1)
    model = OTHERS[other]()
    x, y = torch.randn(3, 5).repeat(2000, 1), torch.arange(3).repeat(2000)
    redraw = {"1": "differences", "*": "copies"} if other == "tokens" else DIFFERENCES
    net = GLR(model, 0.6, head="auto", redraw=redraw, example_block=6000)
    reference = GLR(model, 0.6, "pathwise", example_block=6000)
    net.prepare(x)
    assert next_linear(net.network, net.network.sites[0]) is None
    first = next(iter(dict(model.named_parameters())))
    sums = [torch.zeros_like(model.get_parameter(first)) for _ in range(2)]
    for number, (total, each) in itertools.product(range(6), zip(sums, (net, reference), strict=True)):
        each.step = number
        total += each.gradients(x, y).grads[first] / 6
    assert (sums[0] - sums[1]).norm() < 0.05 * sums[1].norm()


def test_units_that_are_not_elementwise_after_all_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_wise, "ELEMENTWISE", (*ELEMENTWISE, nn.Softmax))
    net = GLR(OTHERS["softmax"](), 0.5, redraw=DIFFERENCES)
    with pytest.raises(
        SiteError, match="'differences' at '0': when one unit moves, the logits of '2' do not change by"
    ):
        net.estimate(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))


def test_one_move_in_a_block_before_outputs_of_another_shape() -> None:
    """The head `expected` recognises the logits of the last site."""
    model = nn.Sequential(nn.Linear(5, 1), nn.Sigmoid(), nn.Linear(1, 6), nn.Unflatten(1, (3, 2)))

    class Both:
        def __call__(self, z: Tensor, y: Tensor) -> Tensor:
            return (z.argmax(1) != y[:, None]).double().mean(1).float()

        def expected(self, law: Any) -> Any:
            return lambda z, y, scale: (z / scale).square().mean((1, 2))

    net = GLR(model, 0.5, redraw=DIFFERENCES, head="expected", verify=False)
    assert net.gradients(torch.randn(4, 5), torch.zeros(4, dtype=torch.long), Both()).grads["0.weight"].any()


def test_a_head_with_a_derivative_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))
    net = GLR(model, 0.5, redraw="differences", head="derivative")
    step = net.bind(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))
    assert list(step.unit_wise) == ["0"]
    assert step.copies == {"0": 8, "2": 8}


# ---------------------------------------------------------------- half-widths


@pytest.mark.parametrize("noise", [Gaussian(), Laplace()], ids=lambda noise: noise.law)
def test_half_widths_have_the_moments_of_their_density(noise: Any) -> None:
    """E[R] = 2 E|ε| and E[R²] = 3 Var ε, since E|U| = 1/2 and E[U²] = 1/3; five standard errors."""
    half = noise.half_width((200_000,), generator(Key(1)), torch.float64)
    eps = noise.sample((200_000,), generator(Key(2)), torch.float64)
    for mine, its in ((half, 2 * eps.abs()), (half.square(), 3 * eps.square())):
        error = ((mine.var() + its.var()) / 200_000).sqrt()
        assert (mine.mean() - its.mean()).abs() < 5 * error


class Triangular:
    """p(ε) = 1 - |ε| on [-1, 1]: R has the density 2 r, and the score is ±1 / (1 - |ε|)."""

    def __init__(self, power: float = 0.5) -> None:
        self.power = power

    def sample(self, shape: Any, stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        pair = torch.rand((2, *shape), generator=stream, dtype=torch.float64)
        return (pair[0] - pair[1]).to(dtype)

    def score(self, eps: Tensor) -> Tensor:
        return eps.sign() / (1 - eps.abs()).clamp(min=1e-6)

    def half_width(self, shape: Any, stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.rand(tuple(shape), generator=stream, dtype=dtype) ** self.power


@pytest.mark.slow
def test_a_law_of_ones_own_may_offer_half_widths() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randn(3, 5).repeat(2000, 1), torch.arange(3).repeat(2000)
    net = GLR(model, Triangular(), redraw=DIFFERENCES, example_block=6000)
    reference = GLR(model, Triangular(), "pathwise", example_block=6000)
    mine, its = (each.gradients(x, y).grads["0.weight"] for each in (net, reference))
    assert (mine - its).norm() < 0.05 * its.norm()


def test_half_widths_of_another_law_are_refused() -> None:
    with pytest.raises(ConfigError, match="half_width is not that of sample"):
        GLR(nn.Linear(2, 2), Triangular(1.0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda half, stream: half.float(), "a tensor of that shape and dtype"),
        (lambda half, stream: -half, "finite numbers >= 0"),
        (lambda half, stream: torch.rand(half.shape, dtype=half.dtype) ** 0.5, "from `stream`, and from nothing else"),
    ],
)
def test_half_widths_are_drawn_from_their_stream(wrong: Any, message: str) -> None:
    class Law(Triangular):
        def half_width(self, shape: Any, stream: torch.Generator, dtype: torch.dtype) -> Tensor:
            return wrong(super().half_width(shape, stream, dtype), stream)

    with pytest.raises(ConfigError, match=f"half_width.shape, stream, dtype. must .*{message}"):
        GLR(nn.Linear(2, 2), Law())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("noise", "options", "message"),
    [
        (Logistic(0.5), {}, "needs a law with half_width"),
        (Gaussian(0.5, learn="unit"), {}, "does not estimate the gradient of σ"),
        (Gaussian(0.5), {"estimator": "layerwise"}, "works only with 'conditional', not with 'layerwise'"),
        (Gaussian(0.5), {"estimator": "joint"}, "works only with 'conditional', not with 'joint'"),
    ],
    ids=str,
)
def test_refusals_name_the_reason(noise: Any, options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=r"estimator\.redraw: 'differences' .*") as caught:
        GLR(model, noise, redraw="differences", **options).gradients(torch.randn(4, 5), torch.zeros(4, dtype=int))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- what `auto` takes


@pytest.mark.parametrize(
    ("units", "options", "expected"),
    [
        (nn.Sigmoid(), {"head": "auto"}, {"2": "differences"}),
        (Heaviside(), {"head": "auto"}, {"2": "flips"}),
        (nn.Sigmoid(), {}, {}),  # a sampled head
        (nn.Sigmoid(), {"head": "auto", "feedback": "control_variate"}, {}),
        (nn.Sigmoid(), {"head": "auto", "noise": Logistic(0.5)}, {}),
        (Heaviside(), {"head": "auto", "noise": Logistic(0.5)}, {"2": "flips"}),
        (nn.Softmax(1), {"head": "auto"}, {}),
        (nn.Sigmoid(), {"head": "auto", "noise": Gaussian(0.5, learn="site")}, {}),
    ],
)
def test_auto_goes_unit_by_unit_before_a_linear_head(
    units: nn.Module, options: dict[str, Any], expected: dict[str, str]
) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), units, nn.Linear(4, 3))
    net = GLR(model, **{"noise": 0.5, "redraw": "auto", **options})
    step = net.bind(torch.randn(4, 5), torch.zeros(4, dtype=torch.long), cross_entropy)
    assert {name: way.name for name, way in step.unit_wise.items()} == expected
    assert not set(step.levels) & set(step.unit_wise)
    assert all(step.copies[name] == (8 if how == "differences" else 4) for name, how in expected.items())


def test_a_move_costs_a_column_of_the_next_layer() -> None:
    model = nn.Sequential(nn.Linear(100, 50), nn.Sigmoid(), nn.Linear(50, 10))
    x, y = torch.randn(4, 100), torch.zeros(4, dtype=torch.long)
    net = GLR(model, 0.5, redraw=DIFFERENCES, head="expected")
    assert net.cost(x, y, zero_one) == (100, pytest.approx(1 + 100 * 10 / (100 * 50 + 50 * 10)))


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("bug", ["half-widths of |ε|", "scale forgotten", "one side alone"])
def test_faults_are_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = made("sigmoid", "gaussian")
    moved = Differences.moves

    def wrong(self: Differences, noise: Any, z: Tensor, v: Tensor, scale: Tensor, block: Any, drawn: Any) -> Moves:
        if bug == "half-widths of |ε|":
            return moved(self, noise, z, v, scale, block, drawn / 3**0.5)
        if bug == "scale forgotten":
            return moved(self, noise, z, v, 1.5 * scale, block, drawn)
        found = moved(self, noise, z, v, scale, block, drawn)
        return found._replace(by_z=found.by_z * found.by_z.new_tensor([2.0, 0.0])[:, None])

    monkeypatch.setattr(Differences, "moves", wrong)
    with pytest.raises(AssertionError, match="z too large"):
        agrees(itertools.islice(estimates(net, x, y, cross_entropy), 64), right("sigmoid", "gaussian"), 0.3)
