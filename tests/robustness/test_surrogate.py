"""The surrogate is trained once, cached, and trained again if the cached one is damaged."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from glr_dist import config, data
from glr_dist.config import Config
from glr_dist.errors import ConfigError
from glr_dist.robustness.suite import Surrogate, surrogate_config
from glr_dist.robustness.surrogate import trained_surrogate
from glr_dist.training import checkpoint

QUICK = {"seed": 3, "model": {"hidden": [4], "activation": "relu"}, "training": {"epochs": 1}}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits():
    return data.load(config.Data())


def surrogate(dataset, **changes):
    surrogate = surrogate_config(config.build(Surrogate, {**QUICK, **changes}), Config())
    return checkpoint.digest(trained_surrogate(surrogate, dataset, "cpu").net.state_dict())


@pytest.mark.slow
def test_it_is_trained_once_for_each_config_and_cached(cache, digits, capsys):
    first = surrogate(digits)
    assert capsys.readouterr().err.count("training the surrogate") == 1
    assert surrogate(digits) == first
    assert "training" not in capsys.readouterr().err
    assert surrogate(digits, seed=4) != first
    assert len(list(cache.glob("surrogate-digits-*"))) == 2
    assert not list(cache.glob(".*"))


@pytest.mark.slow
def test_other_images_are_another_surrogate(cache, digits):
    first = surrogate(digits)
    fewer = data.load(config.Data(validation=0.3))
    surrogate(fewer)
    assert surrogate(digits) == first
    assert len(list(cache.iterdir())) == 2


@pytest.mark.slow
def test_a_damaged_surrogate_is_trained_again(cache, digits, capsys):
    first = surrogate(digits)
    (newest,) = cache.glob("*/checkpoints/*.pt")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert surrogate(digits) == first
    said = capsys.readouterr().err
    assert "is not a whole checkpoint" in said
    assert said.count("training the surrogate of") == 2


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, digits, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLR_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="GLR_CACHE") as raised:
        surrogate(digits)
    assert "\n" not in str(raised.value)


def test_the_default_cache_is_the_users(tmp_path, digits, monkeypatch):
    monkeypatch.delenv("GLR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    surrogate(digits)
    assert list((tmp_path / "xdg" / "glr_dist").glob("surrogate-digits-*/summary.json"))


def half_made(folder):
    """A surrogate whose training was killed in a version that trained in place."""
    (folder / "summary.json").unlink()


def without_checkpoints(folder):
    shutil.rmtree(folder / "checkpoints")


def without_config(folder):
    (folder / "config.yaml").unlink()


def of_another_config(folder):
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))


def of_another_network(folder):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "params_sha256": "0f"}))


def with_a_damaged_summary(folder):
    (folder / "summary.json").write_bytes(b"\xff{")


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


SPOILED = (
    half_made,
    without_checkpoints,
    without_config,
    of_another_config,
    of_another_network,
    with_a_damaged_summary,
    a_file,
    empty,
)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", SPOILED, ids=lambda function: function.__name__)
def test_an_unusable_surrogate_is_trained_again(cache, digits, capsys, spoil):
    first = surrogate(digits)
    (folder,) = cache.iterdir()
    spoil(folder)
    capsys.readouterr()
    assert surrogate(digits) == first
    assert "training the surrogate again" in capsys.readouterr().err
    assert surrogate(digits) == first
    assert "training" not in capsys.readouterr().err
    assert list(cache.iterdir()) == [folder]


@pytest.mark.process
def test_temporary_folders_of_killed_evaluations_are_removed(cache, digits, claimed_elsewhere):
    """An old folder is removed unless a process claims it; a young one may be about to be claimed."""
    old, young, busy = (cache / f".surrogate-digits-{name}" for name in ("old", "young", "busy"))
    for folder in (old, young, busy):
        (folder / "run").mkdir(parents=True)
    claimed_elsewhere(busy, "surrogate")
    for folder in (old, busy):
        os.utime(folder, (1, 1))
    surrogate(digits)
    assert {folder.name for folder in cache.glob(".*")} == {young.name, busy.name}


def test_a_failed_training_leaves_nothing_behind(cache, digits, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("glr_dist.robustness.surrogate.train", stop)
    with pytest.raises(KeyboardInterrupt):
        surrogate(digits)
    assert list(cache.iterdir()) == []


def test_of_two_at_once_the_first_to_finish_wins(cache, digits, monkeypatch):
    """While this one trains, another process trains and stores the same surrogate."""
    from glr_dist.robustness import surrogate as module

    original = module.train

    def train(config, out):
        original(config, out)
        if not list(cache.glob("surrogate-*")):
            (place,) = cache.glob(".surrogate-*")
            shutil.copytree(out, cache / place.name[1:].rpartition("-")[0])

    monkeypatch.setattr(module, "train", train)
    first = surrogate(digits)
    assert len(list(cache.iterdir())) == 1
    assert surrogate(digits) == first
