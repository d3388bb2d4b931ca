"""The comparison with methods that perturb the weights: their estimates, and the job."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glr_dist.config import Config, build
from glr_dist.losses import cross_entropy

JOB = runpy.run_path(str(Path(__file__).parents[1] / "jobs" / "gradient_free.py"))


@pytest.mark.montecarlo
@pytest.mark.parametrize("name", ["spsa", "forward_gradient"])
def test_the_estimates_have_the_gradient_as_their_mean(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    weights = JOB["Weights"](model, cross_entropy)
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    cross_entropy(model(x), y).mean().backward()
    right = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    stream = torch.Generator().manual_seed(1)
    draws = torch.stack([JOB[name](weights, x, y, 5, stream) for _ in range(800)])
    z = (draws.mean(0) - right) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4.5  # of 26 weights; SPSA's error of third order is 1e-5
    weights.assign(weights.vector() + 1)
    assert torch.equal(weights.split(weights.vector())["0.weight"], model[0].weight)


@pytest.mark.long
def test_the_job_compares_the_methods(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {hidden: [16]}\nestimator: {copies: 16, redraw: auto}\ntraining: {batch_size: 64}\n"
    )
    arguments = [str(tmp_path / "run.yaml"), "--seconds", "1.5", "--pairs", "8", "--out", str(tmp_path / "out")]
    assert JOB["main"]([*arguments, "--rates", "0.01", "0.03"]) == 0
    printed = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "out" / "gradient_free.json").read_text())["trainings"]
    assert {"GLR", "SPSA", "forward gradient"} <= report.keys()
    assert [row.split(" | ")[0] for row in printed[2:]] == [f"| {name}" for name in report]
    for name, trainings in report.items():
        assert [one["rate"] for one in trainings] == [0.01, 0.03]
        assert max(one["test"] for one in trainings) > 0.3, name  # guessing gives 0.1
        assert all(one["points"] == sorted(one["points"], key=lambda point: point[0]) for one in trainings)
    assert max(one["test"] for one in report["GLR"]) > 0.7
    assert (tmp_path / "out" / "gradient_free.png").exists()


def test_a_loss_without_a_derivative_has_no_forward_gradient() -> None:
    config = build(Config, {"training": {"loss": "zero_one"}})
    assert "forward gradient" not in JOB["methods_of"](config, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pairs", "0", "run.yaml"], "--seconds, --pairs and --rates: numbers greater than 0 are allowed"),
        (["model.hidden=[4]"], "CONFIG.yaml: one file is needed, 0 were given"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: Any) -> None:
    assert JOB["main"](arguments) == 2
    assert capsys.readouterr().err == f"gradient_free: {said}\n"
