"""The lines that `train` and `tune` print before they import torch: they are those of the run itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.error_lines import error_line

from glr_dist import cli
from glr_dist.cli.overview import expected, loaded, of_search
from glr_dist.config import load_config
from glr_dist.config.data import READ
from glr_dist.execution import device
from glr_dist.registry import DATASETS, MODELS
from glr_dist.sizes import DATA_SIZES
from glr_dist.training.train import trainer_of
from glr_dist.tuning.search_config import load_search

CONFIGS = Path(__file__).parents[2] / "configs"
SEARCH = "tune: {space: {noise.scale: {loguniform: [0.1, 1]}}, trials: 3}\ntraining: {epochs: 1}\n"


def assert_expected_is_loaded(config, out) -> None:
    lines = expected(config)
    found = loaded(trainer_of(config, out))
    assert lines == {name: found[name] for name in lines}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.hidden=[]"],
        ["model.hidden=[8, 6]", "model.dropout=0.5", "noise.learn=unit"],
        ["data.validation=0.37", "data.test=0.41"],
        ["data.validation=0.5", "data.test=0.998"],
        ["execution.device=auto"],
        ["execution={kind: auto, device: auto}"],
        ["execution={kind: layers, device: auto}"],
        ["execution={kind: replicas, device: auto, actors: 1}"],
    ],
    ids=str,
)
def test_the_lines_of_a_configuration_are_those_of_its_run(monkeypatch, tiny, tmp_path, overrides):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(device, "may_have_gpu", lambda: False)
    assert_expected_is_loaded(tiny(*overrides), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist"])
def test_the_lines_of_each_data_set_are_those_of_a_run(tiny, tmp_path, glr_data, name):
    assert_expected_is_loaded(tiny(f"data={{name: {name}, root: {glr_data}}}"), tmp_path / "run")


def test_every_built_in_data_set_has_a_size_and_so_has_every_configuration():
    assert set(DATA_SIZES) == set(DATASETS) - set(READ)
    for path in [CONFIGS / "digits.yaml", *CONFIGS.glob("*mnist/*.yaml")]:
        assert set(expected(load_config(path, ["execution.device=cpu"]))) == {"device", "data", "parameters"}


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["device=auto"], None),
        (["device=cuda:1"], "cuda:1, inline"),
        (["device=cpu"], "cpu, inline"),
        (["device=auto", "kind=layers"], "cpu, layers"),
        (["device=auto", "kind=layers", "gpus_per_actor=1"], None),
        (["device=auto", "kind=replicas"], "cpu, replicas"),
        (["device=cpu", "kind=replicas", "gpus_per_actor=1"], "cuda, replicas"),
    ],
    ids=str,
)
def test_with_a_gpu_driver_only_torch_decides_what_auto_is(monkeypatch, tiny, overrides, line):
    monkeypatch.setattr(device, "may_have_gpu", lambda: True)
    assert expected(tiny(*(f"execution.{word}" for word in overrides)))["device"] == line


def test_a_device_is_refused_at_once_where_no_gpu_driver_is(monkeypatch, tiny, tiny_yaml, tmp_path, capsys):
    monkeypatch.setattr(device, "may_have_gpu", lambda: False)
    line = error_line(capsys, "train", tiny_yaml, "execution.device=cuda:3", "--out", tmp_path / "run")
    assert "execution.device: 'cuda:3' does not exist: this machine has 0 CUDA devices" in line
    assert "data.validation" in error_line(capsys, "train", tiny_yaml, "data.validation=1e-5")
    # The GPUs of `replicas` may be on other machines.
    expected(tiny("execution={kind: replicas, device: 'cuda:3', gpus_per_actor: 1}"))


def test_entries_of_ones_own_are_shown_once_they_are_loaded(monkeypatch, tiny_yaml, tmp_path, capsys):
    for registry, built_in in ((DATASETS, "digits"), (MODELS, "mlp")):
        monkeypatch.setattr(registry, "_added", {"mine": registry[built_in]})
    words = ["data.name=mine", "model.name=mine", "training.epochs=1"]
    assert cli.main(["train", str(tiny_yaml), *words, "--out", str(tmp_path / "run")]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[2:4] == [["data", "loading"], ["parameters", "loading"]]
    assert lines[4:7] == [
        ["data", "mine: 1,294 training, 144 validation, 359 test images"],
        ["parameters", "610"],
        ["sites", "1, 3"],
    ]


def test_a_line_that_was_wrong_is_corrected(monkeypatch, tiny_yaml, tmp_path, capsys):
    monkeypatch.setattr("glr_dist.sizes.parameter_count", lambda *_: 7)
    assert cli.main(["train", str(tiny_yaml), "training.epochs=1", "--out", str(tmp_path / "run")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line[0] == "parameters"] == ["7", "610"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["device", "data", "parameters", "trials"]),
        (["tune.space={model.hidden: {choice: [[4], [5]]}}"], ["device", "data", "trials"]),
        (["tune.space={data.validation: {choice: [0.1, 0.2]}}"], ["device", "trials"]),
    ],
    ids=["noise", "model", "data"],
)
def test_the_lines_of_a_search_are_those_of_all_trials(tmp_path, words, names):
    (path := tmp_path / "search.yaml").write_text(SEARCH)
    search = load_search(path, [*words, "tune.algorithm=random"])
    lines = of_search(search)
    assert list(lines) == names
    assert lines["trials"] == "3 by random"
    known = expected(search.base)
    assert all(lines[name] == known[name] for name in ("data", "parameters") if name in lines)
    assert of_search(load_search(path, ["tune.actors_per_trial=2"]))["device"] == "cpu, layers"
    assert of_search(load_search(path, ["tune.gpus_per_trial=0.5"]))["device"] == "cuda, inline"
    assert of_search(load_search(path, ["tune.seeds=3"]))["trials"] == "3 by optuna, 3 seeds each"


WITHOUT_TORCH = """
import sys
from glr_dist.cli import main

class Watched:
    def __getattr__(self, name):
        return getattr(sys.__stdout__, name)

    def write(self, text):
        if text.strip():
            sys.__stdout__.write("late " if {"torch", "ray"} & set(sys.modules) else "early ")
        return sys.__stdout__.write(text)

sys.stdout = Watched()
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("command", "last"), [("train", "parameters"), pytest.param("tune", "trials", marks=pytest.mark.long)]
)
def test_the_lines_are_printed_before_torch_is_imported(python, tiny_yaml, tmp_path, command, last):
    (path := tmp_path / "search.yaml").write_text(SEARCH)
    words = [tiny_yaml] if command == "train" else [path, "tune.space={noise.scale.nosuch: {choice: [1, 2]}}"]
    done = python(WITHOUT_TORCH, command, *words, "training.epochs=1", "tracking.kind=mlflow", "--out", tmp_path / "r")
    lines = [line.split() for line in done.stdout.splitlines()]
    early = [words[1] for words in lines if words[0] == "early"]
    assert early == [
        "results",
        "tracking",
        *(["device", "data", "parameters", "trials"][: 4 if last == "trials" else 3]),
    ]


def test_the_presence_of_a_driver_decides_whether_there_may_be_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(device, "_AMD", tmp_path / "kfd")
    monkeypatch.setattr(device, "_DRIVERS", ("libnosuch.so.1",))
    assert not device.may_have_gpu()
    monkeypatch.setattr(device, "_DRIVERS", ("libnosuch.so.1", "libc.so.6"))
    assert device.may_have_gpu()
    monkeypatch.setattr(device, "_DRIVERS", ())
    (tmp_path / "kfd").touch()
    assert device.may_have_gpu()
    monkeypatch.setattr(device.sys, "platform", "darwin")
    assert not device.may_have_gpu()
