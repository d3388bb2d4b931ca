"""Adversarial training: the images that it makes, their gradients, and their place in a run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from glr_dist import GLR
from glr_dist.config import Adversarial
from glr_dist.errors import ConfigError
from glr_dist.losses import cross_entropy
from glr_dist.nn import Heaviside
from glr_dist.training.adversarial import Adversary
from glr_dist.training.train import train
from glr_dist.training.trainer import Trainer

X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def network(unit: nn.Module, noise: float | None = 0.3) -> GLR:
    torch.manual_seed(1)
    net = GLR(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), unit, nn.Linear(12, 3)), noise)
    net.prepare(X)
    return net


def adversary(net: GLR, **settings: object) -> Adversary:
    return Adversary(Adversarial(**{"epsilon": 0.1, **settings}), net, X, seed=3)


def loss(net: GLR, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(cross_entropy(net(x), Y).mean())


def at_random() -> torch.Tensor:
    """Returns images that are moved by the same distance in random directions."""
    signs = torch.randn(X.shape, generator=torch.Generator().manual_seed(5)).sign()
    return (X + 0.1 * signs).clamp(0, 1)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("settings", [{"gradient": "exact"}, {"copies": 200}], ids=["exact", "estimated"])
def test_images_stay_in_the_ball_and_in_range_and_raise_the_loss(steps, settings):
    net = network(nn.Tanh())
    found = adversary(net, steps=steps, **settings).perturbed(X, Y, 0)
    assert (found - X).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert loss(net, found) > loss(net, X) + 3 * abs(loss(net, at_random()) - loss(net, X))


def test_a_step_of_the_exact_gradient_is_fgsm():
    net = network(nn.Tanh())
    x = X.clone().requires_grad_()
    cross_entropy(net(x), Y).sum().backward()
    assert torch.equal(adversary(net, gradient="exact").perturbed(X, Y, 5), (X + 0.1 * x.grad.sign()).clamp(0, 1))


def test_estimates_agree_with_the_exact_gradient_where_noise_is_small():
    net = network(nn.Tanh(), 0.05)
    estimated = adversary(net, copies=1024).perturbed(X, Y, 0) - X
    exact = adversary(net, gradient="exact").perturbed(X, Y, 0) - X
    assert (estimated.sign() == exact.sign()).double().mean() > 0.95


def test_threshold_units_need_no_derivative():
    net = network(Heaviside())
    for spread in (None, 0.5):
        found = adversary(net, copies=400, spread=spread, steps=3).perturbed(X, Y, 0)
        assert loss(net, found) > loss(net, X) + 3 * abs(loss(net, at_random()) - loss(net, X))
    with pytest.raises(ConfigError, match="'exact' is not allowed: no derivative reaches the input"):
        adversary(net, gradient="exact")


def test_the_images_are_those_of_the_present_parameters_and_of_the_step():
    net = network(nn.Tanh())
    made = adversary(net, steps=2, copies=20)
    first = made.perturbed(X, Y, 4)
    assert torch.equal(made.perturbed(X, Y, 4), first)
    assert not torch.equal(made.perturbed(X, Y, 5), first)
    with torch.no_grad():
        next(net.parameters()).neg_()
    changed = made.perturbed(X, Y, 4)
    assert not torch.equal(changed, first)
    assert torch.equal(adversary(net, steps=2, copies=20).perturbed(X, Y, 4), changed)
    assert adversary(net, every=3).perturbed(X, Y, 4) is X


def test_the_steps_of_a_run_see_them_and_its_evaluation_does_not(tiny, tmp_path):
    settings = tiny("training.adversarial={epsilon: 0.1, every: 2, copies: 8}", "training.epochs=1")
    trainer = Trainer(settings, tmp_path / "run")
    batches, estimate = [], trainer.net.estimate
    trainer.net.estimate = lambda x, y, loss: batches.append(x) or estimate(x, y, loss)
    trainer.run()
    levels = [((16 * x).round() / 16 - x).abs().max().item() > 0 for x in batches]
    assert levels == [step % 2 == 0 for step in range(len(batches))]
    x, y = trainer.validation.batch(slice(None))
    with torch.no_grad():
        accuracy = (trainer.net.eval()(x).argmax(1) == y).double().mean().item()
    assert trainer.history[-1]["validation_accuracy"] == accuracy


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(tiny, tmp_path):
    overrides = ["training.adversarial={epsilon: 0.1, steps: 2, copies: 8}", "training.epochs=2"]
    whole = train(tiny(*overrides), tmp_path / "whole")
    trainer = Trainer(tiny(*overrides), tmp_path / "parts")
    trainer.advance(1)
    assert train(tiny(*overrides), tmp_path / "parts", resume=True)["params_sha256"] == whole["params_sha256"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.adversarial={epsilon: 0}"], "training.adversarial.epsilon: 0 is not allowed"),
        (["training.adversarial={steps: 2}"], "training.adversarial.epsilon: is missing"),
        (
            ["training.adversarial={epsilon: 0.1, gradient: exact, spread: 1}"],
            "training.adversarial.spread: has no effect with gradient 'exact'; leave it out",
        ),
    ],
)
def test_mistakes_are_one_line(tiny, overrides, words):
    with pytest.raises(ConfigError) as caught:
        tiny(*overrides)
    assert words in str(caught.value)


def test_what_cannot_be_attacked_is_refused_before_the_first_step(tiny, tmp_path):
    flat = ["data={name: 'sklearn.datasets:load_wine'}", "training.adversarial={epsilon: 0.1}"]
    with pytest.raises(ConfigError, match=r"training\.adversarial: needs images"):
        Trainer(tiny(*flat), tmp_path / "flat")
    silent = ["noise.law=none", "estimator={name: pathwise}", "model.activation=relu"]
    with pytest.raises(ConfigError, match="the network has no noise with which a gradient could be estimated"):
        Trainer(tiny(*silent, "training.adversarial={epsilon: 0.1}"), tmp_path / "silent")
    assert not (tmp_path / "silent").exists()
