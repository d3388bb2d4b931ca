"""Metrics of any targets, and the settings of the loop that depend on them: early stopping, limits, clipping."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from glr_dist import cli
from glr_dist.config import EarlyStopping, Training, build
from glr_dist.data import Split
from glr_dist.errors import ConfigError
from glr_dist.glr import GLR
from glr_dist.losses import IGNORED, LOSSES
from glr_dist.runs import RunFolder
from glr_dist.training.scores import METRICS, check_metrics, scores
from glr_dist.training.train import train
from glr_dist.training.trained_run import load_run
from glr_dist.training.trainer import Trainer

RANDOM = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(40, 6, generator=RANDOM)
CLASSES = torch.randint(6, (40,), generator=RANDOM)


def of(outputs: torch.Tensor, targets: torch.Tensor, loss: str, *metrics: str) -> dict[str, float]:
    """The scores of a network that returns its inputs."""
    return scores(GLR(nn.Identity()), Split(outputs, targets), LOSSES[loss], metrics)


def test_classes():
    found = of(OUTPUTS, CLASSES, "zero_one", "top5_accuracy", "f1", "recall", "auc")
    predicted = OUTPUTS.argmax(1)
    assert found["accuracy"] == pytest.approx((predicted == CLASSES).float().mean().item())
    assert found["loss"] == pytest.approx(1 - found["accuracy"])
    ranks = (OUTPUTS.gather(1, CLASSES[:, None]) < OUTPUTS).sum(1)
    assert found["top5_accuracy"] == pytest.approx((ranks < 5).float().mean().item())
    each = []
    for number in range(6):
        right = ((predicted == number) & (number == CLASSES)).sum().item()
        recall = right / max(1, (number == CLASSES).sum().item())
        precision = right / max(1, (predicted == number).sum().item())
        assert found[f"recall/{number}"] == pytest.approx(recall)
        each.append(2 * recall * precision / max(recall + precision, 1e-9))
    assert found["f1"] == pytest.approx(np.mean(each))


def test_tokens_do_not_count_where_they_are_padding():
    outputs, targets = torch.randn(5, 7, 3, generator=RANDOM), torch.randint(3, (5, 7), generator=RANDOM)
    targets[:, 5:] = IGNORED
    found = of(outputs, targets, "cross_entropy", "f1")
    assert found["accuracy"] == pytest.approx((outputs.argmax(-1) == targets)[:, :5].float().mean().item())


def test_real_values():
    targets = OUTPUTS + 0.5 * torch.randn(40, 6, generator=RANDOM)
    found = of(OUTPUTS, targets, "mse", "mae", "r2")
    assert "accuracy" not in found
    assert found["mae"] == pytest.approx((OUTPUTS - targets).abs().mean().item(), rel=1e-5)
    residual, total = ((targets - OUTPUTS) ** 2).sum(0), ((targets - targets.mean(0)) ** 2).sum(0)
    assert found["r2"] == pytest.approx((1 - residual / total).mean().item(), rel=1e-4)


def test_several_labels():
    targets = (torch.rand(40, 6, generator=RANDOM) > 0.5).float()
    found = of(OUTPUTS, targets, "binary_cross_entropy", "f1", "auc")
    assert 0 < found["f1"] < 1
    perfect = of(targets - 0.5, targets, "binary_cross_entropy", "f1", "auc")
    assert (perfect["f1"], perfect["auc"]) == (1, 1)


def test_every_metric_fits_the_targets_that_the_check_allows():
    kinds = {"classes": CLASSES, "values": OUTPUTS.clone(), "labels": (OUTPUTS > 0).float()}
    losses = {"classes": "zero_one", "values": "mse", "labels": "binary_cross_entropy"}
    for kind, targets in kinds.items():
        for metric in METRICS:
            split = Split(OUTPUTS, targets)
            try:
                check_metrics(Training(metrics=(metric,)), split)
            except ConfigError:
                continue
            if kind == "values" and metric in ("f1", "auc", "recall"):
                continue  # only the values say that they are not labels
            assert all(np.isfinite(value) for value in of(OUTPUTS, targets, losses[kind], metric).values())


def test_auc_of_examples_that_lack_a_class():
    from sklearn.metrics import roc_auc_score

    kept = CLASSES != 3
    found = of(OUTPUTS[kept], CLASSES[kept], "zero_one", "auc")["auc"]
    share, true = OUTPUTS.double().softmax(-1)[kept].numpy(), CLASSES[kept].numpy()
    assert found == pytest.approx(np.mean([roc_auc_score(true == c, share[:, c]) for c in (0, 1, 2, 4, 5)]))
    whole = of(OUTPUTS, CLASSES, "zero_one", "auc")["auc"]
    assert whole == pytest.approx(roc_auc_score(CLASSES, OUTPUTS.double().softmax(-1), multi_class="ovr"))


def test_metrics_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="'top5_accuracy' is not allowed: the targets are not one class"):
        check_metrics(Training(metrics=("top5_accuracy",)), Split(OUTPUTS, OUTPUTS))
    for name in ("f1", "auc", "recall"):
        with pytest.raises(ConfigError, match=f"'{name}' is not allowed: the targets are neither classes nor labels"):
            check_metrics(Training(metrics=(name,)), Split(OUTPUTS, OUTPUTS))
    whole, single = Split(OUTPUTS, CLASSES), Split(OUTPUTS, torch.zeros_like(CLASSES))
    with pytest.raises(ConfigError, match="'auc' is not allowed: the validation or test examples are all of one class"):
        check_metrics(Training(metrics=("auc",)), whole, whole, single)
    early = EarlyStopping(patience=1)
    with pytest.raises(ConfigError, match="'accuracy' is not allowed: the targets are not classes; use 'loss'"):
        check_metrics(Training(early_stopping=early), Split(OUTPUTS, OUTPUTS))
    with pytest.raises(ConfigError, match=r"early_stopping\.metric: 'mae' is not measured"):
        build(Training, {"early_stopping": {"patience": 1, "metric": "mae"}})


# ---------------------------------------------------------------- the loop


@pytest.mark.slow
def test_early_stopping_ends_a_run_and_chooses_its_best_epoch(tiny, tmp_path, monkeypatch):
    from glr_dist.training import trainer as module

    planted = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    monkeypatch.setattr(module, "scores", lambda *_: {"accuracy": 0.1, "loss": 1 - next(planted, 0.0)})
    early = "training.early_stopping={patience: 2, metric: loss}"
    summary = train(tiny("training.epochs=20", early), tmp_path / "run")
    assert (summary["epochs"], summary["best_epoch"]) == (4, 2)


@pytest.mark.slow
def test_limits_of_steps_and_of_time(tiny, tmp_path):
    whole = Trainer(tiny(), tmp_path / "whole")
    steps = whole.steps + 3
    summary = train(tiny(f"training.max_steps={steps}"), tmp_path / "steps")
    assert (summary["steps"], summary["epochs"]) == (steps, 2)
    again = train(tiny(f"training.max_steps={steps}"), tmp_path / "steps", resume=True)
    assert again["params_sha256"] == summary["params_sha256"]
    assert train(tiny("training.max_seconds=1.0e-6"), tmp_path / "time")["epochs"] == 1


def initial(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.net.parameters()]


def distance(trainer: Trainer, before: list[torch.Tensor]) -> float:
    """How far a run has moved its parameters."""
    with torch.no_grad():
        squares = [(p - b).square().sum() for p, b in zip(trainer.net.parameters(), before, strict=True)]
        return float(torch.stack(squares).sum().sqrt())


@pytest.mark.slow
def test_the_norm_of_the_gradient_is_clipped(tiny, tmp_path):
    sgd = "training.optimizer={name: SGD, lr: 1.0}"
    one = ["training.max_steps=1", sgd]

    def moved(name: str, *overrides: str) -> float:
        trainer = Trainer(tiny(*one, *overrides), tmp_path / name)
        before = initial(trainer)
        trainer.run()
        return distance(trainer, before)

    free = moved("free")
    assert moved("clipped", f"training.clip_norm={free / 4}") == pytest.approx(free / 4, rel=1e-4)
    assert moved("loose", f"training.clip_norm={free * 4}") == pytest.approx(free, rel=1e-5)


def test_the_learning_rate_warms_up(tiny, tmp_path):
    sgd = "training.optimizer={name: SGD, lr: 1.0}"

    def moved(name: str, *overrides: str) -> float:
        trainer = Trainer(tiny("training.max_steps=1", sgd, *overrides), tmp_path / name)
        before = initial(trainer)
        trainer.run()
        assert trainer.optimizer.param_groups[0]["lr"] == 1.0
        return distance(trainer, before)

    assert moved("warm", "training.warmup=10") == pytest.approx(moved("at once") / 10, rel=1e-4)


@pytest.mark.slow
def test_the_average_of_the_weights_is_tested_and_kept_and_survives_a_resume(tiny, tmp_path):
    decay = "training.ema=0.8"
    trainer = Trainer(tiny(decay), tmp_path / "whole")
    average, steps = initial(trainer), []
    real = trainer.optimizer.step

    def step(*arguments: object) -> object:
        """Averages by the formula, beside the run."""
        result = real(*arguments)
        steps.append(1)
        factor = min(0.8, (1 + len(steps)) / (10 + len(steps)))
        for mean, parameter in zip(average, trainer.net.parameters(), strict=True):
            mean.mul_(factor).add_((1 - factor) * parameter.detach())
        return result

    trainer.optimizer.step = step
    summary = trainer.run()
    kept = load_run(tmp_path / "whole").net
    for parameter, mean in zip(kept.parameters(), average, strict=True):
        torch.testing.assert_close(parameter.detach(), mean)
    plain = train(tiny(), tmp_path / "plain")
    last = load_run(tmp_path / "plain").net  # the average does not change the training
    for parameter, other in zip(trainer.net.parameters(), last.parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert summary["test_loss"] != plain["test_loss"]
    train(tiny(decay, "training.epochs=1"), tmp_path / "parts")
    assert train(tiny(decay), tmp_path / "parts", resume=True)["params_sha256"] == summary["params_sha256"]


# ---------------------------------------------------------------- other tasks from YAML

REGRESSION = """
data: {name: "sklearn.datasets:load_diabetes"}
model: {hidden: [20], activation: threshold, normalize: train}
noise: {scale: 0.3}
estimator: {copies: 20}
training: {epochs: 8, batch_size: 32, loss: mse, metrics: [mae, r2], optimizer: {name: Adam, lr: 0.5}}
"""
COARSE = '''
def coarse(outputs, targets):
    """Number of full hundreds by which a prediction is off."""
    return ((outputs - targets).abs() / 100).floor().flatten(1).mean(1)
'''


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "coarse_of_test:coarse"])
def test_a_regression_with_any_loss(tmp_path, capsys, loss, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "coarse_of_test.py").write_text(COARSE)
    (tmp_path / "run.yaml").write_text(REGRESSION)
    out = tmp_path / "run"
    assert cli.main(["train", str(tmp_path / "run.yaml"), f"training.loss={loss}", "--out", str(out)]) == 0
    assert "validation loss" in capsys.readouterr().out
    metrics = RunFolder(out).metrics()
    assert metrics[-1]["validation_mae"] < 0.8 * metrics[0]["validation_mae"]
    summary = json.loads(Path(out / "summary.json").read_text())
    assert "test_accuracy" not in summary
    assert summary["best_epoch"] == 1 + int(np.argmin([record["validation_loss"] for record in metrics]))
    assert (out / "learning_curve.png").exists()
