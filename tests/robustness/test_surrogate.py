"""The surrogate is trained once, cached, and trained again if the cached one is damaged."""

from __future__ import annotations

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


def test_it_is_trained_once_for_each_config_and_cached(cache, digits, capsys):
    first = surrogate(digits)
    assert capsys.readouterr().err.count("training the surrogate") == 1
    assert surrogate(digits) == first
    assert "training" not in capsys.readouterr().err
    assert surrogate(digits, seed=4) != first
    assert len(list(cache.glob("surrogate-digits-*"))) == 2
    assert not list(cache.glob(".*"))


def test_other_images_are_another_surrogate(cache, digits):
    first = surrogate(digits)
    fewer = data.load(config.Data(validation=0.3))
    surrogate(fewer)
    assert surrogate(digits) == first
    assert len(list(cache.iterdir())) == 2


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
