"""Jobs are thin entry points over the library."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from glr_dist import GLR, load_config
from glr_dist.diagnostics.race import race
from glr_dist.nn import LIF, Heaviside, Quantise, Sign

JOBS = Path(__file__).parents[1] / "jobs"
TINY = "model: {hidden: [8]}\nestimator: {copies: 8}\ntraining: {epochs: 1, batch_size: 512}\n"


def _replicate(*arguments):
    command = [sys.executable, str(JOBS / "replicate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.long
@pytest.mark.process
def test_replicate_tabulates_every_seed_and_runs_nothing_twice(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = (tmp_path / "tiny.yaml", "--seeds", 0, 1, "--out", tmp_path / "out", "noise.scale=0.7")
    first = _replicate(*arguments)
    assert first.returncode == 0, first.stderr
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(row["name"], row["seed"]) for row in table] == [("tiny", 0), ("tiny", 1)]
    assert table[0]["params_sha256"] != table[1]["params_sha256"]
    metrics = tmp_path / "out" / "tiny-seed0" / "metrics.jsonl"
    before = metrics.read_text()
    again = runpy.run_path(str(JOBS / "replicate.py"))["main"](list(map(str, arguments)))
    assert again == 0
    assert metrics.read_text() == before
    assert [row["params_sha256"] for row in json.loads((tmp_path / "out" / "table.json").read_text())] == [
        row["params_sha256"] for row in table
    ]


@pytest.mark.process
def test_replicate_reports_an_error_in_one_line(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = _replicate(tmp_path / "tiny.yaml", "noise.scale=-1", "--out", tmp_path / "out")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "noise.scale" in run.stderr


@pytest.mark.slow
def test_training_in_the_loop_beats_a_wrong_model_on_hardware_that_drifts(capsys):
    main = runpy.run_path(str(JOBS / "analog.py"))["main"]
    found = main(["--epochs", "4", "--seeds", "1"])
    last = {method: runs[0][-1] for method, runs in found.items()}
    assert last["GLR"] > 0.75  # 0.83; guessing gives 0.1
    assert last["GLR"] > last["ideal model"] + 0.1  # 0.61
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3].split()[-1] == f"{last['GLR']:.3f}"


@pytest.mark.long
def test_a_network_trains_through_jpeg_to_nine_tenths_of_its_accuracy_without(capsys):
    main = runpy.run_path(str(JOBS / "black_box.py"))["main"]
    found = main(["--epochs", "4", "--seeds", "1"])
    last = {method: runs[0][-1] for method, runs in found.items()}
    assert last["without JPEG"] > 0.8  # 0.886
    assert last["GLR"] > 0.9 * last["without JPEG"]  # 0.844
    assert last["last layer alone"] < 0.3  # 0.117: the layer before the codec must learn
    assert capsys.readouterr().out.splitlines()[-2].split()[-1] == f"{last['GLR']:.3f}"


def _backprop(*arguments):
    return runpy.run_path(str(JOBS / "backprop.py"))["main"](list(map(str, arguments)))


@pytest.mark.parametrize(
    "model",
    [
        "{hidden: [20], activation: threshold}",
        "{hidden: [20], activation: sign}",
        "{name: spiking_mlp, hidden: [20], steps: 4}",
        "{name: quantised_mlp, hidden: [20], bits: 2}",
    ],
)
def test_backpropagation_with_surrogates_trains_the_layer_before_a_jump(model, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(
        f"model: {model}\nnoise: {{scale: 0.5}}\n"
        "training: {epochs: 8, batch_size: 64, optimizer: {name: Adam, lr: 0.02}}\n"
    )
    assert _backprop(tmp_path / "run.yaml", "training.epochs=3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    losses = [float(re.search(r"train loss (\d+\.\d+)", line)[1]) for line in lines]
    assert losses == sorted(losses, reverse=True)
    assert float(re.search(r"test accuracy (\d+\.\d+)", lines[-1])[1]) > 0.75  # guessing gives 0.1


def test_backpropagation_averages_the_weights_and_augments_the_images_as_configured(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    losses, accuracies = [], []
    for override in ("training.ema=null", "training.ema=0.99", "data.augment={noise: 0.3}"):
        assert _backprop(tmp_path / "tiny.yaml", override) == 0
        loss, accuracy = re.search(r"loss (\S+)  validation accuracy (\S+)", capsys.readouterr().out).groups()
        losses.append(loss)
        accuracies.append(accuracy)
    assert losses[0] == losses[1] != losses[2]  # the average does not change the training, other images do
    assert accuracies[0] != accuracies[1]


def test_a_surrogate_changes_the_derivative_alone():
    job = runpy.run_path(str(JOBS / "backprop.py"))
    for unit in (Heaviside(), Sign(), Quantise(2), LIF(0.5)):
        x = torch.randn(5, 4, 3, requires_grad=True)
        model = torch.nn.Sequential(unit)
        expected = model(x)
        assert not expected.requires_grad or not torch.autograd.grad(expected.sum(), x)[0].any()
        job["with_surrogates"](model)
        found = model(x)
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.autograd.grad(found.sum(), x)[0].any()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.loss=zero_one", "training.loss: 'zero_one' has no derivative; use 'cross_entropy'"),
        ("noise.input={scale: 0.1}", "noise.input: has no effect in this job"),
        ("training.clip_norm=1", "training.clip_norm: has no effect in this job"),
        ("training.warmup=10", "training.warmup: has no effect in this job"),
        ("model.hiden=[3]", "model.hiden: unknown key"),
    ],
)
def test_backpropagation_refuses_in_one_line(override, said, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert _backprop(tmp_path / "tiny.yaml", override) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"backprop: {said}")


def _train(*arguments, in_ray_job=False, folder=None, job="train"):
    command = [sys.executable, str(JOBS / f"{job}.py"), *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["RAY_ADDRESS"] = "127.0.0.1:1"  # a person's shell may hold one: it makes no Ray job
    if in_ray_job:
        environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = "{}"
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)


@pytest.mark.process
def test_train_does_what_the_command_line_does(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = _train("tiny.yaml", "--out", "here", "seed=7", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "epoch 1/1" in run.stdout
    assert json.loads((tmp_path / "here" / "summary.json").read_text())["seed"] == 7
    monkeypatch.chdir(tmp_path)
    for words, code, said in ((["--out"], 2, "--resume"), (["--resume", "--out"], 0, "")):  # in this process
        monkeypatch.setattr(sys, "argv", ["train.py", "tiny.yaml", *words, "here", "seed=7"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(JOBS / "train.py"), run_name="__main__")
        assert end.value.code == code
        assert said in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CONFIG.yaml"),
        (["missing.yaml"], "missing.yaml"),
        (["tiny.yaml", "noise.scale=-1"], "noise.scale"),
        (["tiny.yaml", "--outt", "x"], "--outt"),
        (["tiny.yaml", "--out"], "--out"),
    ],
    ids=str,
)
def test_train_reports_an_error_in_one_line(tmp_path, arguments, said):
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = _train(*arguments, folder=tmp_path)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert said in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.process
@pytest.mark.parametrize("job", ["train", "tune"])
@pytest.mark.parametrize("out", [[], ["--out", "runs/x"], ["--out=runs/x"], ["--ou", "x"]], ids=str)
def test_a_ray_job_refuses_results_that_would_be_lost(tmp_path, out, job):
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = _train("tiny.yaml", *out, in_ray_job=True, folder=tmp_path, job=job)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert "--out" in run.stderr
    assert "absolute" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.process
@pytest.mark.parametrize("job", ["train", "tune"])
@pytest.mark.parametrize("form", ["--out {}", "--out={}", "--ou {}", "--out file://{}"])
def test_a_ray_job_takes_an_absolute_folder(tmp_path, form, job):
    run = _train("missing.yaml", *form.format(tmp_path / "out").split(), in_ray_job=True, folder=tmp_path, job=job)
    assert run.returncode == 2
    assert "missing.yaml" in run.stderr  # the library's word: the folder was accepted


@pytest.mark.process
@pytest.mark.parametrize("in_ray_job", [False, True])
def test_train_helps_at_once(in_ray_job):
    started = time.perf_counter()
    run = _train("--help", in_ray_job=in_ray_job)
    assert run.returncode == 0
    assert "--resume" in run.stdout
    assert time.perf_counter() - started < 2


@pytest.mark.process
def test_a_ray_job_refuses_a_folder_that_is_not_local_in_one_line(tmp_path):
    run = _train("tiny.yaml", "--out", "s3://bucket/x", in_ray_job=True, folder=tmp_path)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert "'s3://bucket/x' is not a local folder" in run.stderr


# ---------------------------------------------------------------- benchmarks


def _benchmark(*arguments):
    return runpy.run_path(str(JOBS / "benchmark.py"))["main"](list(map(str, arguments)))


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_benchmark_variance_measures_each_option_within_each_budget(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY + "diagnose: {draws: 4, reference_passes: 400, batch: 32}\n")
    options = ("model.activation=threshold", "--passes", 6, 12, "--out", tmp_path / "out")
    assert _benchmark("variance", tmp_path / "tiny.yaml", *options) == 0
    found = json.loads((tmp_path / "out" / "variance.json").read_text())
    assert {(p["option"], p["budget"]) for p in found["points"]} == {
        (option, budget) for option in ("plain", "head auto", "unit by unit", "copies auto") for budget in (6.0, 12.0)
    }
    for point in found["points"]:
        assert point["forward_passes"] <= point["budget"]
        assert point["forward_passes"] > 0.5 * point["budget"]
        assert set(point["cosines"]) == {"1", "3"}
    assert found["versions"]["torch"] == torch.__version__
    assert (tmp_path / "out" / "variance.png").exists()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 8 + 1


@pytest.mark.slow
def test_the_benchmark_time_to_accuracy_trains_every_candidate(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    options = ("training.loss=zero_one", "model.activation=threshold", "training.batch_size=64", "--turn", 5)
    more = ("--accuracy", 0.3, "--rounds", 2, "--steps", 300, "--out", tmp_path / "out")
    assert _benchmark("time_to_accuracy", tmp_path / "tiny.yaml", *options, *more) == 0
    found = json.loads((tmp_path / "out" / "time_to_accuracy.json").read_text())
    times = found["times"]
    assert list(times) == ["as configured", "head auto", "copies auto", "backpropagation"]
    for each in times.values():
        assert len(each) == 2
        assert all(time["steps"] % 5 == 0 and time["seconds"] > 0 for time in each)
    for time_ in times["backpropagation"]:
        assert time_["forward_passes"] == 3 * time_["steps"]
    for time_ in times["head auto"]:
        assert time_["forward_passes"] > time_["steps"]
    assert "2/2" in capsys.readouterr().out


def test_candidates_train_in_training_mode_after_their_accuracy_was_measured(monkeypatch):
    """In evaluation mode dropout would not act, and a compiled step would be compiled again."""
    config, modes = load_config("configs/digits.yaml", ["training.batch_size=64"]), []
    estimate = GLR.estimate
    monkeypatch.setattr(GLR, "estimate", lambda net, *given: modes.append(net.training) or estimate(net, *given))
    race({"as configured": config}, accuracy=1.1, rounds=1, steps=6, turn=2)
    assert modes == [True] * 6


@pytest.mark.slow
def test_the_benchmark_step_has_the_ratio_to_backpropagation(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    threshold = ("training.loss=zero_one", "model.activation=threshold")
    options = ("--actors", 0, "--rounds", 3, "--steps", 1, "--out", tmp_path / "out")
    assert _benchmark("step", tmp_path / "tiny.yaml", *threshold, *options) == 0
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert set(found["seconds"]) == {"inline", "backpropagation"}
    assert found["ratio_to_backpropagation"] > 0
    assert "times a step of backpropagation" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("step", "tiny.yaml", "--actors", "0", "2"), "--actors: numbers of actors from 1 on are allowed, or 0 alone"),
        (("variance", "tiny.yaml", "--passes", "0.5"), "--passes: 0.5 are not enough"),
        (("time_to_accuracy", "seed=1"), "CONFIG.yaml: one file is needed, 0 were given"),
    ],
)
def test_a_benchmark_reports_an_error_in_one_line(arguments, reason, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    assert _benchmark(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"benchmark: {reason}")
