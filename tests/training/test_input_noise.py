"""Noise on the input: keyed draws, its ramp, and its place in a run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from glr_dist.config import InputNoise
from glr_dist.errors import ConfigError
from glr_dist.training.input_noise import check_inputs, scale_after, with_input_noise
from glr_dist.training.train import train
from glr_dist.training.trainer import Trainer


def test_the_noise_is_gaussian_keyed_by_the_step_and_not_clipped():
    """20,000 draws; z bound 5."""
    x = torch.full((20, 1, 20, 50), 0.5)
    eps = (with_input_noise(x, 2.0, seed=3, step=7) - x).double() / 2
    assert abs(eps.mean()) < 5 / 20_000**0.5
    assert abs(eps.var() - 1) < 5 * (2 / 20_000) ** 0.5
    assert (eps.abs() > 2).any()
    assert torch.equal(with_input_noise(x, 2.0, 3, 7), with_input_noise(x, 2.0, 3, 7))
    assert not torch.equal(with_input_noise(x, 2.0, 3, 7), with_input_noise(x, 2.0, 3, 8))
    assert not torch.equal(with_input_noise(x, 2.0, 3, 7), with_input_noise(x, 2.0, 4, 7))
    assert with_input_noise(x, 0.0, 3, 7) is x


def test_each_tensor_of_a_tree_has_its_own_draws_and_whole_numbers_stay():
    x = {"a": torch.zeros(3, 4), "b": torch.zeros(3, 4), "tokens": torch.arange(3)}
    noisy = with_input_noise(x, 1.0, 0, 0)
    assert noisy["tokens"] is x["tokens"]
    assert not torch.equal(noisy["a"], noisy["b"])
    check_inputs(x)
    with pytest.raises(ConfigError, match=r"noise\.input"):
        check_inputs({"tokens": torch.arange(3)})


def test_the_scale_grows_linearly_over_the_ramp():
    assert [scale_after(InputNoise(scale=0.5, ramp=4), epoch) for epoch in range(6)] == [
        0,
        0.125,
        0.25,
        0.375,
        0.5,
        0.5,
    ]
    assert scale_after(InputNoise(scale=0.5), 0) == 0.5


KINDS = {
    "likelihood ratio": [],
    "0-1 loss": ["training.loss=zero_one"],
    "backpropagation": ["estimator={name: pathwise}", "noise.law=none", "model.activation=relu"],
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_the_steps_of_a_run_see_the_noise_and_its_evaluation_does_not(tiny, tmp_path, monkeypatch, overrides):
    trainer = Trainer(tiny(*overrides, "noise.input={scale: 0.4, ramp: 1}", "training.epochs=2"), tmp_path / "run")
    batches = []
    estimate = trainer.net.estimate
    trainer.net.estimate = lambda x, y, loss: batches.append(x) or estimate(x, y, loss)
    trainer.run()
    first, second = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    levels = [((16 * x).round() / 16 - x).abs().max().item() for x in (*first, *second)]
    assert max(levels[: len(first)]) == 0  # the ramp begins at 0
    assert min(levels[len(first) :]) > 0.01
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["input_noise"] for record in records] == [0, 0.4]
    x, y = trainer.validation.batch(slice(None))
    with torch.no_grad():
        accuracy = (trainer.net.eval()(x).argmax(1) == y).double().mean().item()
    assert records[-1]["validation_accuracy"] == accuracy


@pytest.mark.slow
def test_a_run_without_it_is_what_it_was(tiny, tmp_path):
    plain = train(tiny("training.epochs=1"), tmp_path / "plain")
    noisy = train(tiny("training.epochs=1", "noise.input.scale=0.1"), tmp_path / "noisy")
    assert plain["params_sha256"] != noisy["params_sha256"]


def test_a_ramp_that_does_not_end_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"noise\.input\.ramp: 3 is not before the end"):
        tiny("training.epochs=3", "noise.input={scale: 0.5, ramp: 3}")
    with pytest.raises(ConfigError, match=r"noise\.input\.scale: 0 is not allowed"):
        tiny("noise.input.scale=0")


@pytest.mark.parametrize("field", ["noise.input.scale", "training.penalty.spectral"])
def test_the_job_that_does_not_know_a_setting_refuses_it(tiny_yaml, capsys, field):
    job = runpy.run_path(str(Path(__file__).parents[2] / "jobs" / "backprop.py"))
    assert job["main"]([str(tiny_yaml), f"{field}=0.1"]) == 2
    assert f"{field.rpartition('.')[0]}: has no effect" in capsys.readouterr().err
