"""Configuration files and overrides: which value wins, what is text, and what cannot be read."""

from __future__ import annotations

import pytest
from config.written import error_of, loaded

from glr_dist.config import Noise, load_config
from glr_dist.errors import ConfigError


def test_whole_numbers_as_keys_are_text_wherever_they_come_from(tmp_path):
    text = "noise: {scale: {1: 0.5, '*': 1}, schedule: {4: {1: 0.2, '*': 0.1}}}"
    found = loaded(tmp_path, text, "noise.scale={1: 0.3, '*': 2}", "noise.schedule.4.1=0.4").noise
    assert (found.scale, found.schedule) == ({"1": 0.3, "*": 2}, {4: {"1": 0.4, "*": 0.1}})


def test_an_override_wins_over_the_file(tmp_path):
    assert loaded(tmp_path, "noise: {scale: 2, law: laplace}", "noise.scale=3").noise == Noise(scale=3, law="laplace")


def test_the_last_of_two_overrides_wins(tmp_path):
    assert loaded(tmp_path, "", "seed=1", "seed=2").seed == 2


def test_an_override_makes_the_section_that_the_file_left_out_or_empty(tmp_path):
    assert loaded(tmp_path, "", "model.hidden=[3, 4]").model.hidden == (3, 4)
    assert loaded(tmp_path, "model:", "model.hidden=[3]").model.hidden == (3,)


def test_overrides_take_any_yaml_value(tmp_path):
    resolved = loaded(
        tmp_path,
        "",
        "noise.scale={'1': 0.5, '*': 1}",
        "training.optimizer={name: SGD, lr: 0.1}",
        "training.optimizer.momentum=0.9",
        "data.root=/a=b",
        "execution.threads=null",
        "data.download=false",
    )
    assert resolved.noise.scale == {"1": 0.5, "*": 1.0}
    assert resolved.training.optimizer.arguments == {"lr": 0.1, "momentum": 0.9}
    assert resolved.data.root == "/a=b"
    assert resolved.execution.threads is None
    assert resolved.data.download is False


@pytest.mark.parametrize("text", ["1e-2", "1E-2", "0.01", "1.0e-2", "+.01"])
def test_scientific_notation_is_a_number_though_yaml_takes_it_for_text(tmp_path, text):
    file = "training: {optimizer: {name: SGD}}"
    overrides = [f"{key}={text}" for key in ("noise.scale", "training.optimizer.lr", "model.init_scale")]
    resolved = loaded(tmp_path, file, *overrides)
    assert (resolved.noise.scale, resolved.training.optimizer.arguments["lr"], resolved.model.init_scale) == (0.01,) * 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "form section.key=value"),
        ("=1", "form section.key=value"),
        ("noise.scale=[", "noise.scale: '[' is not a YAML value"),
        ("seed.inner=1", "seed"),
        ("noise.scale.deep.er=1", "noise.scale"),
    ],
)
def test_a_bad_override_is_an_error(tmp_path, override, said):
    assert said in error_of(tmp_path, "", override)


def test_an_override_below_a_value_is_an_error(tmp_path):
    assert "not a mapping" in error_of(tmp_path, "seed: 3", "seed.inner=1")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("missing.yaml", None, "No such file"), ("binary.yaml", b"\xff\xfe\x00\x80", "not text")],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_a_config_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_a_key_that_occurs_twice_is_named(tmp_path):
    (tmp_path / "twice.yaml").write_text("noise:\n  scale: 1\n  law: laplace\n  scale: 2\n")
    with pytest.raises(ConfigError, match="the key 'scale' occurs twice"):
        load_config(tmp_path / "twice.yaml")
