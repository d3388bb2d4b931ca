"""Warm starts: a run that begins with the parameters of another one."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from crashes import Crash, crash_at
from test_trainer import lasting, metrics, stopped_at

from glr_dist import cli, config
from glr_dist.errors import ConfigError, UserError
from glr_dist.robustness.suite import load_suite
from glr_dist.runs import RunFolder, deciding
from glr_dist.training import checkpoint
from glr_dist.training.train import train
from glr_dist.training.trained_run import load_run
from glr_dist.training.trainer import Trainer
from glr_dist.tuning.search import tune
from glr_dist.tuning.search_config import load_search
from glr_dist.tuning.trial_record import TrialRecord
from glr_dist.tuning.trial_runner import Interval, TrialRunner

SHORT = ("estimator.copies=2", "training.epochs=2")


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory) -> tuple[Path, dict]:
    """The run whose parameters are used, and its summary."""
    out = tmp_path_factory.mktemp("other") / "run"
    return out, train(tiny(*SHORT), out)


@pytest.fixture(scope="module")
def learned(tiny, tmp_path_factory) -> Path:
    """A run that learned a noise scale for each unit."""
    out = tmp_path_factory.mktemp("learned") / "run"
    train(tiny(*SHORT, "noise.learn=unit"), out)
    return out


def scales(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {site: scale.clone() for site, scale in trainer.net.scales().items()}


# ---------------------------------------------------------------- the parameters


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "checkpoint"])
def test_a_run_begins_with_the_parameters_of_another_one(other, tiny, tmp_path, place):
    out, summary = other
    path = out if place == "folder" else out / "checkpoints" / checkpoint.name_of(2)
    trainer = Trainer(tiny(*SHORT, f"model.weights={path}"), tmp_path / "run")
    assert checkpoint.digest(trainer.net.state_dict()) == summary["params_sha256"]
    assert (trainer.epoch, trainer.net.step, trainer.history) == (0, 0, [])
    assert trainer.optimizer.state_dict()["state"] == {}  # begins afresh
    first = trainer.run()
    assert first["epochs"] == 2
    assert metrics(tmp_path / "run")[0]["train_loss"] < metrics(out)[0]["train_loss"]
    again = train(tiny(*SHORT, f"model.weights={path}"), tmp_path / "again")
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_an_older_checkpoint_is_another_beginning(other, tiny, tmp_path):
    path = other[0] / "checkpoints" / checkpoint.name_of(1)
    trainer = Trainer(tiny(f"model.weights={path}"), tmp_path / "run")
    state = checkpoint.load(path)["network"]
    assert checkpoint.digest(trainer.net.state_dict()) == checkpoint.digest(state) != other[1]["params_sha256"]


def test_without_weights_nothing_changes(tiny, tmp_path):
    assert not (Trainer(tiny(), tmp_path / "run").folder.checkpoints).exists()


def test_other_settings_of_training_may_differ(other, tiny, tmp_path):
    overrides = ["noise.scale=0.2", "training.loss=zero_one", "model.activation=sign", "training.optimizer={name: SGD}"]
    trainer = Trainer(tiny(*SHORT, f"model.weights={other[0]}", *overrides), tmp_path / "run")
    assert all(scale == pytest.approx(0.2) for scale in scales(trainer).values())  # not learned: as configured
    expected = load_run(other[0]).net.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trainer.net.model.state_dict().items())
    trainer.run()


# ---------------------------------------------------------------- learned noise scales


def test_learned_scales_are_carried_if_both_runs_learn_them_alike(learned, tiny, tmp_path):
    trainer = Trainer(tiny(*SHORT, "noise.learn=unit", "noise.scale=2", f"model.weights={learned}"), tmp_path / "run")
    expected = load_run(learned).net.scales()
    assert trainer.carried == ["log_scales.1", "log_scales.3"]
    assert all(torch.equal(scale, expected[site]) for site, scale in scales(trainer).items())
    assert len(set(scales(trainer)["1"].tolist())) == 8  # learned ones


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["none", "site"])
def test_other_scales_begin_as_configured(learned, other, tiny, tmp_path, learn):
    for number, (path, own) in enumerate(((learned, learn), (other[0], "unit"), (other[0], "site"))):
        settings = tiny(*SHORT, f"noise.learn={own}", "noise.scale=2", f"model.weights={path}")
        trainer = Trainer(settings, tmp_path / str(number))
        assert trainer.carried == []
        assert all(torch.equal(scale, torch.full_like(scale, 2)) for scale in scales(trainer).values())


@pytest.mark.slow
@pytest.mark.parametrize(("learn", "said"), [("unit", False), ("site", True), ("none", False)])
def test_the_command_says_whose_parameters_and_scales_it_begins_with(learned, tiny_yaml, tmp_path, capsys, learn, said):
    run = ["train", str(tiny_yaml), *SHORT, f"noise.learn={learn}", f"model.weights={learned}", "--out"]
    assert cli.main([*run, str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights ")]
    assert str(learned) in line
    assert line.endswith(", noise scales begin at noise.scale") == said
    assert cli.main([*run, str(tmp_path / "run"), "--resume"]) == 0
    assert "weights " not in capsys.readouterr().out


# ---------------------------------------------------------------- the digest, and resuming


@pytest.mark.slow
def test_the_digest_is_recorded_and_the_other_run_is_not_read_again(other, tiny, tmp_path):
    shutil.copytree(other[0], tmp_path / "other")
    settings, out = tiny(*SHORT, f"model.weights={tmp_path / 'other'}"), tmp_path / "run"
    whole = train(settings, tmp_path / "whole")
    stopped_at(Trainer(settings, out), step=1)  # in the first epoch
    stored = RunFolder(out).config()
    assert load_run(out, checkpoint="best").epoch == load_run(out).epoch == 0
    assert stored.model.weights == str(tmp_path / "other")
    assert stored.model.weights_sha256 == other[1]["params_sha256"]
    shutil.rmtree(tmp_path / "other")
    stopped_at(Trainer(settings, out, resume=True), step=4)  # in the second epoch
    again = train(stored, out, resume=True)  # as --resume --out does
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert lasting(metrics(out)) == lasting(metrics(tmp_path / "whole"))
    assert RunFolder(out).config() == stored


@pytest.mark.slow
def test_equal_weights_of_another_place_are_the_same_run(other, tiny, tmp_path):
    shutil.copytree(other[0], tmp_path / "moved")
    settings = [
        tiny(f"model.weights={path}", f"model.weights_sha256={other[1]['params_sha256']}")
        for path in (other[0], tmp_path / "moved")
    ]
    assert deciding(settings[0]) == deciding(settings[1])
    train(settings[0], tmp_path / "run")
    assert train(settings[1], tmp_path / "run", resume=True)["epochs"] == 3


@pytest.mark.slow
def test_other_weights_than_the_run_began_with_are_refused(other, learned, tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny(*SHORT, f"model.weights={other[0]}"), out)
    with pytest.raises(ConfigError, match=rf"model\.weights: the run in {out} began with .*leave out --resume"):
        Trainer(tiny(*SHORT, f"model.weights={learned}"), out, resume=True)
    with pytest.raises(ConfigError, match=r"^model\.weights.*leave out --resume"):
        Trainer(tiny(*SHORT), out, resume=True)
    train(tiny(*SHORT), tmp_path / "cold")
    with pytest.raises(ConfigError, match=r"^model\.weights: the run in .* has None, not .*leave out --resume"):
        Trainer(tiny(*SHORT, f"model.weights={other[0]}"), tmp_path / "cold", resume=True)


def test_a_digest_that_is_given_is_checked(other, tiny, tmp_path):
    given = f"model.weights_sha256={'f' * 64}"
    with pytest.raises(ConfigError, match=rf"model\.weights_sha256: 'f+' is not allowed: .*{other[0]}") as caught:
        Trainer(tiny(f"model.weights={other[0]}", given), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(ConfigError, match=r"model\.weights_sha256: has no effect without model\.weights"):
        tiny(given)


@pytest.mark.long
def test_a_crash_at_any_write_of_the_beginning_can_be_resumed(other, tiny, tmp_path):
    settings = tiny("estimator.copies=2", "training.epochs=1", f"model.weights={other[0]}")
    whole = train(settings, tmp_path / "whole")
    for number in itertools.count():
        out = tmp_path / f"crash {number}"
        try:
            with crash_at(number):
                train(settings, out)
            break
        except Crash:
            pass
        assert train(settings, out, resume=True)["params_sha256"] == whole["params_sha256"]
        assert RunFolder(out).config().model.weights_sha256 == other[1]["params_sha256"]
    assert number >= 8


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.hidden=[9]"], "'1.weight' has shape (8, 64) there and has shape (9, 64) in this network"),
        (["model.hidden=[8, 8]"], "'3.weight' has shape (10, 8) there and has shape (8, 8) in this network"),
        (["data.name=mnist"], "'1.weight' has shape (8, 64) there and has shape (8, 784) in this network"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_parameters_that_do_not_fit_are_one_line(other, tiny_yaml, tmp_path, capsys, overrides, words, request):
    if "mnist" in overrides[0]:
        request.getfixturevalue("glr_data")
    line = refused(capsys, tiny_yaml, tmp_path, f"model.weights={other[0]}", *overrides)
    assert line.startswith(f"glr-dist: model.weights: {other[0]}")
    assert words in line


def test_parameters_that_only_one_network_has_are_named(tiny, tmp_path, other):
    path = tmp_path / "other.pt"
    for change, words in (
        (lambda network: network.pop("model.3.bias"), "'3.bias' does not exist there and has shape"),
        (lambda network: network.update({"model.5.bias": torch.ones(2)}), "'5.bias' has shape (2,) there and does not"),
    ):
        state = checkpoint.load(other[0] / "checkpoints" / checkpoint.name_of(2))
        change(state["network"])
        checkpoint.save(path, state)
        with pytest.raises(ConfigError) as caught:
            Trainer(tiny(f"model.weights={path}"), tmp_path / "run")
        assert words in str(caught.value)


class Planted:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["missing", "empty folder", "cut", "text", "plain state", "planted", "no checkpoint"])
def test_a_wrong_file_is_one_line_before_anything_is_written(other, tiny_yaml, tmp_path, capsys, kind):
    path, mark = tmp_path / "weights", tmp_path / "ran"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "no checkpoint":
        shutil.copytree(other[0], path, ignore=shutil.ignore_patterns("*.pt"))
    elif kind == "cut":
        path.write_bytes((other[0] / "checkpoints" / checkpoint.name_of(2)).read_bytes()[:-9])
    elif kind == "text":
        path.write_text("weights")
    elif kind == "plain state":
        checkpoint.save(path, {"epoch": 3})
    elif kind == "planted":
        buffer = io.BytesIO()
        torch.save({"network": Planted(mark)}, buffer)
        path.write_bytes(buffer.getvalue())
    line = refused(capsys, tiny_yaml, tmp_path, f"model.weights={path}")
    assert line.startswith(f"glr-dist: model.weights: {path}")
    assert not mark.exists()


def refused(capsys, path: Path, folder: Path, *overrides: str) -> str:
    out = folder / "run"
    assert cli.main(["train", str(path), *overrides, "--out", str(out)]) == 2
    said, errors = capsys.readouterr()
    assert "epoch" not in said
    assert not out.exists()
    (line,) = errors.splitlines()
    return line


def test_a_surrogate_has_no_weights_of_another_run():
    with pytest.raises(ConfigError, match=r"surrogate\.model\.weights: has no effect"):
        load_suite("quick", ["surrogate.model.weights=runs/a"])


# ---------------------------------------------------------------- executors and searches


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit(other, tiny, tmp_path):
    settings = [tiny(*SHORT, f"model.weights={other[0]}", f"execution.threads={n}") for n in (1, 2)]
    shas = {train(each, tmp_path / str(number))["params_sha256"] for number, each in enumerate(settings)}
    assert len(shas) == 1


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("kind", ["layers", "replicas"])
def test_layers_and_replicas_begin_with_the_same_parameters(other, tiny, tmp_path, local_ray, monkeypatch, kind):
    monkeypatch.chdir(other[0].parent)  # a relative path, though workers have another working directory
    overrides = (*SHORT, "model.weights=run")
    whole = train(tiny(*overrides), tmp_path / "inline")
    found = train(
        tiny(*overrides, f"execution={{kind: {kind}, actors: {1 if kind == 'layers' else 2}}}"), tmp_path / kind
    )
    assert kind == "replicas" or found["params_sha256"] == whole["params_sha256"]
    one, two = (load_run(tmp_path / name).net.model.state_dict() for name in ("inline", kind))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert RunFolder(tmp_path / kind).config().model.weights_sha256 == other[1]["params_sha256"]


SEARCH = """
model: {hidden: [8], activation: threshold}
noise: {scale: 0.5}
estimator: {copies: 2}
training: {epochs: 1, batch_size: 512}
execution: {device: cpu}
tune: {space: {noise.scale: {choice: [0.3, 0.6]}}, algorithm: grid}
"""


def test_the_edges_of_a_search_must_fit_the_weights(other, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(SEARCH)
    overrides = [f"model.weights={other[0]}", "tune.space={model.hidden: {choice: [[8], [9]]}}"]
    with pytest.raises(UserError, match=r"model\.weights: .* does not fit: '1.weight'"):
        tune(load_search(path, overrides), tmp_path / "out")
    assert not (tmp_path / "out" / "tune.yaml").exists()


def test_weights_that_are_searched_need_absolute_paths(other, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(SEARCH)
    with pytest.raises(ConfigError, match=r"tune\.space\.model\.weights: 'run' is not possible: .* absolute path"):
        tune(load_search(path, ["tune.space={model.weights: {choice: [run]}}"]), tmp_path / "out")


@pytest.mark.slow
def test_trials_whose_weights_are_searched_are_resumed(other, tmp_path, capsys):
    path, out = tmp_path / "search.yaml", tmp_path / "out"
    path.write_text(SEARCH)
    space = f"tune.space={{model.weights: {{choice: ['{other[0]}']}}}}"
    search = load_search(path, [space])
    TrialRecord(number=0, point={"model.weights": str(other[0])}).save(out)
    TrialRunner(search, out, search.base.tracking).run(Interval(0), lambda metrics: None)
    (out / "tune.yaml").write_text(search.dump())
    assert tune(search, out, resume=True)
    assert RunFolder(out / "trials" / "0").config().model.weights_sha256 == other[1]["params_sha256"]


@pytest.mark.ray
@pytest.mark.long
def test_all_trials_of_a_search_begin_with_the_same_parameters(other, tmp_path, local_ray, monkeypatch):
    path, out = tmp_path / "search.yaml", tmp_path / "out"
    path.write_text(SEARCH)
    monkeypatch.chdir(other[0].parent)
    search = load_search(path, ["model.weights=run"])
    tune(search, out)
    for number in (0, 1):
        stored = RunFolder(out / "trials" / str(number)).config()
        assert (stored.model.weights, stored.model.weights_sha256) == (str(other[0]), other[1]["params_sha256"])
    assert config.load_config(out / "best.yaml").model.weights_sha256 == other[1]["params_sha256"]
    before = json.loads((out / "trials.json").read_text())
    tune(search, out, resume=True)
    assert json.loads((out / "trials.json").read_text()) == before
