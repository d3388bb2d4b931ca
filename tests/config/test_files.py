"""Configuration files and overrides: which value wins, what is text, and what cannot be read."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import yaml
from config.written import error_of, loaded

from glr_dist.config import Noise, dump, load_config, overridden, read
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


# ---------------------------------------------------------------- YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-007", -7),
        ("+5", 5),
        ("1e-2", 0.01),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("2020-01-01", "2020-01-01"),
        ("2020-99-99", "2020-99-99"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("=", "="),
    ],
)
def test_numbers_are_decimal_and_all_else_is_text(tmp_path, text, value):
    path = tmp_path / "values.yaml"
    path.write_text(f"a: {text}\n{text}: 1\n" if text else "a:\n")
    found = read(path)
    assert found["a"] == value
    assert type(found["a"]) is type(value)
    assert all(type(key) is str for key in found)
    assert overridden({}, [f"a={text}"])["a"] == value
    # What is written is read back, also the text that looks like a number or a date in YAML 1.1 or 1.2.
    for kept in (found, {"a": text}, {text: "a"}):
        path.write_text(dump(kept))
        assert read(path) == kept
        assert yaml.safe_load(dump({"a": text})) == {"a": text}


def test_a_leading_zero_does_not_make_a_number_octal(tmp_path):
    assert loaded(tmp_path, "seed: 010").seed == 10
    assert loaded(tmp_path, "", "seed=010").seed == 10
    assert "seed: '0x10'" in error_of(tmp_path, "seed: 0x10")
    assert "seed: '1:30'" in error_of(tmp_path, "", "seed=1:30")


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("first: &first {a: 1, b: 2}\nscale: {<<: *first}", {"a": 1, "b": 2}),
        ("first: &first {a: 1, b: 2}\nscale: {<<: *first, b: 3}", {"a": 1, "b": 3}),
        (
            "first: &first {a: 1}\nsecond: &second {a: 5, c: 4}\nscale: {b: 0, <<: [*first, *second]}",
            {"a": 1, "b": 0, "c": 4},
        ),
        (
            "one: {first: &first {a: 1, b: 1}}\ntwo: {second: &second {<<: *first, a: 2}}\nscale: {<<: *second}",
            {"a": 2, "b": 1},
        ),
    ],
)
def test_merge_keys_work(tmp_path, text, scale):
    path = tmp_path / "merged.yaml"
    path.write_text(text)
    assert read(path)["scale"] == scale


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in itertools.pairwise("abcdefghi")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!int foo", "tags such as tag:yaml.org,2002:int are not supported"),
        ("a: !!bool x", "tags such as"),
        ("a: !!map [1]", "tags such as"),
        ("a: !!str 1", "tags such as"),
        ("a: !mine {}", "tags such as !mine"),
        ("!!python/object/apply:os.system [ls]", "tags such as"),
        ("a: " + "9" * 5000, "a number of 5000 characters"),
        ("a: 0." + "1" * 400, "a number of 402 characters"),
        ("a: -" + "9" * 200, "a number of 201 characters"),
        ("a: " + "[" * 2000 + "]" * 2000, "more than 40 levels"),
        ("{a: " * 2000 + "1" + "}" * 2000, "more than 40 levels"),
        ("- " * 2000 + "1", "more than 40 levels"),
        ("a: &a [*a]", r"\*a contains itself"),
        ("a: &b {c: {d: *b}}", r"\*b contains itself"),
        ("a: &a {<<: *a}", r"\*a contains itself"),
        (BOMB, "more than 10,000 values"),
        (f"a: [{'1, ' * 10_001}]", "more than 10,000 values"),
        ("a: '" + "x" * 1_000_000 + "'", "too large"),
        ("a: 1\n" * 1_000_000, "too large"),
        ("? [1]\n: 2", "a key is a list or a mapping"),
        ("? {a: b}\n: 2", "a key is a list or a mapping"),
        ("a: *none", "undefined alias"),
        ("<<: 1", "mapping"),
        ('"a\\nb": 1\n"a\\nb": 2', r"the key 'a\\nb' occurs twice"),
        ("k" * 1000 + ": 1\n" + "k" * 1000 + ": 2", "kk…kk"),
    ],
    ids=lambda text: text[:30],
)
def test_a_file_that_could_grow_or_run_code_is_refused_in_one_short_line(tmp_path, text, said):
    message = error_of(tmp_path, text)
    assert re.search(said, message), message
    assert len(message) <= 300 + len(str(tmp_path))
    if "\n" not in text and len(text) < 100_000 and text.startswith("a: "):
        assert re.search(said, error_of(tmp_path, "", f"a={text[3:]}"))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("model: {activation: '" + "x" * 100_000 + "'}", "model.activation: 'xx"),
        ('"mod\\nel": 1', r"mod\\nel: unknown key"),
        ("k" * 1000 + ": 1", "kk…"),
        ("noise: {scale: {'a\\n': 1, " + "'" + "b" * 1000 + "': -1}}", "noise.scale.bb"),
        ("model: [" + "1, " * 5000 + "1]", "model: "),
    ],
    ids=["a value", "a line break in a key", "a key", "a pattern", "a list"],
)
def test_long_values_and_keys_are_shortened_in_messages(tmp_path, text, field):
    message = error_of(tmp_path, text)
    assert re.search(field, message), message
    assert len(message) <= 300


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=3", "did you mean 'training.epochs'?"),
        ("lr=0.1", "did you mean 'training.optimizer.lr'?"),
        ("scale=1", "did you mean 'noise.scale' or 'noise.input.scale'?"),
        ("copies=8", "did you mean 'estimator.copies' or 'training.adversarial.copies' or 'diagnose.copies'?"),
        ("model.epochs=3", "did you mean 'training.epochs'?"),
        ("training.epoch=3", "did you mean 'epochs'?"),
        ("modle.hidden=[3]", "did you mean 'model'?"),
    ],
)
def test_an_unknown_key_suggests_the_field_of_that_name_wherever_it_is(tmp_path, override, said):
    message = error_of(tmp_path, "", override)
    assert message.endswith(said)
