"""Learned feedback: unbiased with any map, better than none with a learned one, and the same after a resume."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR, Laplace
from glr_dist.errors import ConfigError, NoGradientError
from glr_dist.estimators import WorkItem, redraw
from glr_dist.estimators.feedback import OUTPUTS, Feedback, moments_key
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.execution.inline import Inline
from glr_dist.losses import LOSSES, cross_entropy, zero_one
from glr_dist.nn import Heaviside
from glr_dist.noise import LAWS
from glr_dist.rules import RULES

from . import test_column_space
from .test_unbiased import agrees, estimates, exact, glr, network, problem


def state(maps: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A state whose maps are nearly these [D, E]."""
    outputs = next(iter(maps.values())).shape[1]
    return {
        "moments": {OUTPUTS: torch.eye(outputs).double(), **{moments_key(site): a for site, a in maps.items()}},
        "explained": {site: torch.ones(2).double() for site in maps},
    }


MAPS = {"0": torch.tensor([[1.5, -2.0], [-1.0, 0.5]]).double(), "2": torch.tensor([[0.2, 1.0], [2.0, -1.5]]).double()}

OPTIONS: dict[str, dict[str, Any]] = {
    "pairs": {},
    "frames": {"sampler": "orthogonal", "copies": 8},
    "iid, no pairs": {"antithetic": False},
    "leave-one-out, no pairs": {"antithetic": False, "baseline": "leave_one_out"},
    "sobol, two passes": {"sampler": "sobol", "passes": 2},
    "blocks": {"block_elements": 2**14, "copies": 12, "example_block": 1500},
    "derivative": {"head": "derivative"},
}


def made(kind: str, law: str, learn: str, **options: Any) -> tuple[GLR, Tensor, Tensor]:
    p = problem(kind, law)
    x, y = p.x.repeat(1024, 1), p.y.repeat(1024)
    chosen = {"sampler": "iid", "copies": 4, "example_block": 2048, "feedback": "control_variate", **options}
    net = glr(network(p.values, nn.Sigmoid() if p.smooth else Heaviside()), p.values, law, learn, x, **chosen)
    net.feedback.load(state(MAPS))
    return net, x, y


def check(kind: str, law: str, learn: str, needed: float = 0.03, most: int | None = None, **options: Any) -> None:
    net, x, y = made(kind, law, learn, **options)
    objective = "layerwise" if net.options.name == "layerwise" else "joint"
    found = itertools.islice(estimates(net, x, y, LOSSES[problem(kind, law).loss]), most)
    agrees(found, exact(kind, law, learn, objective), needed)


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("options", OPTIONS)
def test_any_map_leaves_the_estimate_unbiased(options: str) -> None:
    learn = "site" if options == "frames" else "unit"
    check("threshold", "gaussian", learn, **OPTIONS[options])


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "law", [pytest.param(law, marks=[pytest.mark.long] * (law in ("laplace", "logistic"))) for law in LAWS]
)
def test_any_map_leaves_it_unbiased_under_any_law(law: str) -> None:
    check("sigmoid", law, "unit", 0.04, antithetic=LAWS[law]().symmetric, copies=8)


@pytest.mark.slow
@pytest.mark.montecarlo
def test_layerwise_is_unbiased_too() -> None:
    check("sigmoid", "gaussian", "site", estimator="layerwise")


@pytest.mark.slow
@pytest.mark.montecarlo
def test_the_expected_zero_one_loss_gives_an_output_error() -> None:
    check("threshold_zero_one", "gaussian", "site", head="expected")


@pytest.mark.slow
@pytest.mark.montecarlo
def test_inside_a_column_space() -> None:
    net, x, y = test_column_space.made("tokens", feedback="control_variate")
    right = test_column_space.reference(net, x, y)
    torch.manual_seed(0)
    net.feedback.load(state({"0": torch.randn(10, 2).double()}))
    found = ({name: step[name] for name in right} for step in estimates(net, x, y, zero_one))
    agrees(found, right, 0.05)


# ---------------------------------------------------------------- learning


def task() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.Sigmoid(), nn.Linear(40, 30), nn.Sigmoid(), nn.Linear(30, 5))
    x = torch.randn(128, 20)
    return model, x, (x @ torch.randn(20, 5)).argmax(1)


def trained(steps: int, **options: Any) -> tuple[GLR, Tensor, Tensor]:
    model, x, y = task()
    net = GLR(model, 0.5, **{"copies": 8, "feedback": "control_variate", "executor": Inline(1), **options})
    net.prepare(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        net.estimate(x, y)
        optimizer.step()
    return net, x, y


def variance(net: GLR, x: Tensor, y: Tensor, site: str) -> Tensor:
    drawn = [step[f"{site}.weight"].flatten() for step in itertools.islice(estimates(net, x, y, cross_entropy), 24)]
    return torch.stack(drawn).var(0).sum()


@pytest.mark.slow
@pytest.mark.montecarlo
def test_a_learned_map_lowers_the_variance() -> None:
    net, x, y = trained(40)
    learned = [variance(net, x, y, site) for site in "024"]
    net.feedback = Feedback()
    plain = [variance(net, x, y, site) for site in "024"]
    assert [a < 0.6 * b for a, b in zip(learned, plain, strict=True)] == [True] * 3


def test_a_map_is_the_ridge_regression_of_past_estimates() -> None:
    torch.manual_seed(0)
    site = GLR(nn.Sequential(nn.Linear(2, 4)), 1.0)
    site.prepare(torch.randn(2, 2))
    sites, like = site.network.sites, torch.empty(0, dtype=torch.float64)
    errors, right = torch.randn(200, 3).double(), torch.randn(4, 3).double()
    moments = {moments_key("0"): right @ errors.T @ errors / 200, OUTPUTS: errors.T @ errors / 200}
    feedback = Feedback()
    assert not feedback.maps(sites, 3, like)["0"].matrix.any()
    feedback.update(moments)
    assert not feedback.maps(sites, 3, like)["0"].matrix.any()  # it has predicted nothing yet
    feedback.update(moments)
    torch.testing.assert_close(feedback.maps(sites, 3, like)["0"].matrix, right, rtol=0.02, atol=0.01)
    opposite = {name: -moment if name != OUTPUTS else moment for name, moment in moments.items()}
    feedback.update(opposite)
    feedback.update(opposite)  # by now it has been wrong more than right
    assert not feedback.maps(sites, 3, like)["0"].matrix.any()


def test_an_output_error_of_zero_gives_no_map() -> None:
    net, x, y = trained(3)

    def flat(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0 * outputs.sum(1)

    net.feedback = Feedback()
    for _ in range(3):
        net.zero_grad()
        net.estimate(x, y, flat)
    assert not any(a.matrix.any() for a in net.bind(x, y).feedback.values())


def test_a_restored_state_continues_with_the_same_bits() -> None:
    net, x, y = trained(6)
    assert all(a.matrix.any() for a in net.bind(x, y).feedback.values())
    again, _, _ = trained(0)
    again.load_state_dict(net.state_dict())
    again.step = net.step
    differs = again.gradients(x, y).grads["0.weight"]
    again.feedback.load(copy.deepcopy(net.feedback.state()))
    for name, grad in net.gradients(x, y).grads.items():
        assert torch.equal(again.gradients(x, y).grads[name], grad)
    assert not torch.equal(net.gradients(x, y).grads["0.weight"], differs)


@pytest.mark.parametrize("multiple", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("redrawn", ["copies", "column_space"])
def test_biased_feedback_mixes_the_estimate_with_the_prediction(multiple: float, redrawn: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).double()
    x, y = torch.randn(10, 1, 5, 5).double(), torch.randint(0, 3, (10,))
    maps = state({"0": torch.randn(32, 3).double(), "3": torch.randn(3, 3).double()})
    maps["explained"] = {"0": torch.tensor([multiple, 1.0]), "3": torch.tensor([multiple, 1.0])}
    grads, errors = {}, {}
    for feedback in ("control_variate", "biased"):
        net = GLR(
            model,
            0.5,
            copies=8,
            passes=2,
            feedback=feedback,
            redraw={"0": redrawn, "*": "copies"},
            example_block=6,
            block_elements=2 * 2 * 6 * 32,  # two items for each site
            executor=Inline(1),
        )
        net.prepare(x)
        net.feedback.load(maps)
        grads[feedback] = net.gradients(x, y).grads
        step = net.bind(x, y)
    with torch.no_grad():
        for block in (0, 1):
            tapes = [step.shared_tape(number, block, noisy=True) for number in (0, 1)]
            errors[block] = sum(tape.errors for tape in tapes) / 2 / 10  # of two passes and ten examples
        predicted = torch.cat([errors[0], errors[1]]) @ step.feedback["0"].matrix.T
        expected = RULES[nn.Conv2d](model[0], x, predicted.view(10, 2, 4, 4))
    for name, grad in expected.items():
        mixed = (1 - multiple) * grads["control_variate"][f"0.{name}"] + multiple * grad
        torch.testing.assert_close(grads["biased"][f"0.{name}"], mixed)
        assert multiple == 0 or not torch.allclose(grads["biased"][f"0.{name}"], grads["control_variate"][f"0.{name}"])


def test_only_sites_that_redraw_have_a_map() -> None:
    model, x, y = task()
    model[1] = Heaviside()
    model[4].requires_grad_(False)
    net = GLR(model, 0.5, copies=8, redraw={"0": "flips", "*": "copies"}, feedback="control_variate")
    assert net.bind(x, y).feedback.keys() == {"2"}
    model[4].requires_grad_(True)
    assert net.bind(x, y).feedback.keys() == {"2", "4"}
    net = GLR(model, Laplace(0.5), copies=8, feedback="control_variate", head="derivative")
    assert net.bind(x, y).feedback.keys() == {"0", "2"}


def test_what_cannot_work_is_refused_with_the_reason() -> None:
    model, x, y = task()
    with pytest.raises(NoGradientError, match=r"estimator\.feedback: needs the derivative of the loss"):
        GLR(model, 0.5, copies=8, feedback="control_variate").gradients(x, y, zero_one)
    wide = nn.Sequential(nn.Linear(2, 2000))
    with pytest.raises(ConfigError, match="2,000 outputs for an example, at most 1,024"):
        GLR(wide, 0.5, copies=8, feedback="control_variate").gradients(torch.randn(2, 2), y[:2])


# ---------------------------------------------------------------- biased twins fail

_feedback = redraw.Redraw._feedback


class Halved:
    """A prediction that is subtracted whole, and added back by half."""

    def __init__(self, f: Tensor) -> None:
        self.f = f

    def __rmul__(self, other: Any) -> Any:
        return other * self.f if isinstance(other, Tensor) else 0.5 * other * self.f


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("bug", ["half is added back", "it sees the redraws"])
def test_faults_are_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug == "half is added back":

        def wrong(step: Any, site: Any, tape: Any) -> Any:
            return Halved(_feedback(step, site, tape))
    else:

        def wrong(step: Any, site: Any, tape: Any) -> Any:  # a map that depends on the noise of the redraws
            eps = step.draw(site, WorkItem(0, 0, site.name), DirectionBlock(0, 0, 2, 2), len(tape.errors))
            return _feedback(step, site, tape) * eps[0].square()

    monkeypatch.setattr(redraw.Redraw, "_feedback", staticmethod(wrong))
    with pytest.raises(AssertionError, match="z too large"):
        check("threshold", "gaussian", "unit", 0.5, most=64, antithetic=False, copies=2)
