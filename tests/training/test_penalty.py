"""The penalty on spectral norms: its gradient, its layers, and its effect on a run."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from glr_dist.config import Penalty
from glr_dist.errors import ConfigError
from glr_dist.glr import GLR
from glr_dist.training.penalty import SpectralPenalty, spectral_norm
from glr_dist.training.train import train
from glr_dist.training.trainer import Trainer


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (4, 3, 2, 2), (1, 7), (7, 1)], ids=str)
def test_the_norm_and_its_gradient_are_those_of_the_singular_values(shape):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    exact = torch.linalg.matrix_norm(weight.flatten(1), 2)
    exact.backward()
    norm, gradient = spectral_norm(weight)
    assert norm.item() == pytest.approx(exact.item(), rel=1e-12)
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-9, atol=1e-9)
    assert spectral_norm(weight.float())[1].dtype == torch.float32


def test_a_zero_matrix_has_the_subgradient_zero():
    norm, gradient = spectral_norm(torch.zeros(3, 4))
    assert norm == 0
    assert not gradient.any()


def network():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2))
    net = GLR(model)
    net.prepare(torch.zeros(2, 4))
    return net


LAYERS = {
    "the first": (0.5, {"1": 0.5}),
    "one": ({"3": 0.1}, {"3": 0.1}),
    "all": ({"*": 0.1}, {"1": 0.1, "3": 0.1, "5": 0.1}),
    "the first pattern decides": ({"1": 0.5, "*": 0.1}, {"1": 0.5, "3": 0.1, "5": 0.1}),
}


@pytest.mark.parametrize(("spectral", "expected"), LAYERS.values(), ids=LAYERS)
def test_patterns_choose_the_layers_and_only_those_get_a_gradient(spectral, expected):
    net = network()
    penalty = SpectralPenalty.of(Penalty(spectral=spectral), net.network)
    assert {name: factor for name, (_, factor) in penalty.weights.items()} == expected
    net.model[1].weight.grad = torch.ones(3, 4)  # of an estimate
    penalty.add_gradients()
    for name, parameter in net.model.named_parameters():
        layer, kind = name.split(".")
        before = 1.0 if name == "1.weight" else 0.0
        if kind == "weight" and layer in expected:
            exact = before + expected[layer] * spectral_norm(parameter)[1]
            torch.testing.assert_close(parameter.grad, exact)
        else:
            assert parameter.grad is None or (parameter.grad == before).all()
    assert penalty.norms() == {name: spectral_norm(net.model[int(name)].weight)[0].item() for name in expected}


def test_a_layer_that_is_not_there_or_not_trained_is_refused():
    net = network()
    with pytest.raises(ConfigError, match=r"spectral: '2' matches no layer.*known are 1, 3, 5"):
        SpectralPenalty.of(Penalty(spectral={"2": 1.0}), net.network)
    net.model[1].weight.requires_grad_(False)
    net.prepare(torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="the first layer '1' has no weight matrix to train"):
        SpectralPenalty.of(Penalty(spectral=1.0), net.network)


@pytest.mark.slow
def test_a_penalty_changes_the_gradient_of_a_step_by_its_own_and_nothing_else(tiny, tmp_path):
    steps = ["training.epochs=1", "training.optimizer={name: SGD, lr: 0.5}", "training.max_steps=1"]
    runs = {}
    for factor in (None, 0.3):
        penalty = "null" if factor is None else f"{{spectral: {factor}}}"
        trainer = Trainer(tiny(*steps, f"training.penalty={penalty}"), tmp_path / str(factor))
        before = trainer.net.model[1].weight.detach().clone()
        trainer.run()
        runs[factor] = {name: p.detach() for name, p in trainer.net.model.named_parameters()}
    expected = runs[None]["1.weight"] - 0.5 * 0.3 * spectral_norm(before)[1]
    torch.testing.assert_close(runs[0.3]["1.weight"], expected)
    for name in ("1.bias", "3.weight", "3.bias"):
        assert torch.equal(runs[0.3][name], runs[None][name])


@pytest.mark.slow
def test_a_run_records_the_norm_which_the_penalty_keeps_small(tiny, tmp_path):
    last = {}
    for factor in (1e-9, 0.3):
        train(tiny(f"training.penalty={{spectral: {factor}}}"), tmp_path / str(factor))
        last[factor] = json.loads((tmp_path / str(factor) / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last[0.3]["spectral_norm/1"] < 0.8 * last[1e-9]["spectral_norm/1"]


@pytest.mark.parametrize("value", ["{spectral: 0}", "{spectral: {}}", "{spectral: -1}", "{}", "{spektral: 1}"])
def test_a_wrong_penalty_is_one_line(tiny, value):
    with pytest.raises(ConfigError, match=r"^training\.penalty\.\w+"):
        tiny(f"training.penalty={value}")
