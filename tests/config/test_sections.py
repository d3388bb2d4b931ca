"""Sections: the names of the registries, defaults, round trips, and what never changes."""

from __future__ import annotations

from typing import get_args

import pytest
from config.written import loaded

from glr_dist.config import (
    Config,
    Data,
    Diagnose,
    Estimator,
    Execution,
    Model,
    Noise,
    Section,
    Training,
    build,
    dump_config,
)
from glr_dist.data import load as load_data
from glr_dist.errors import ConfigError
from glr_dist.estimators import ESTIMATORS
from glr_dist.estimators.samplers import SAMPLERS
from glr_dist.noise import Gaussian
from glr_dist.registry import ACTIVATIONS, DATASETS, LAWS, LOSSES, MODELS


def literals(section: type[Section], field: str) -> set[str]:
    return set(get_args(section.model_fields[field].annotation))


@pytest.mark.parametrize(
    ("section", "field", "registry", "more"),
    [
        (Estimator, "name", ESTIMATORS, set()),
        (Estimator, "sampler", SAMPLERS, {"auto"}),
        (Diagnose, "reference", ESTIMATORS, {"auto"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_names_that_the_config_allows_are_those_of_the_registries(section, field, registry, more):
    expected = set(registry) | more
    if section is Diagnose:
        expected -= {"layerwise"}  # its objective is another one: it cannot be the reference of another estimator
    assert literals(section, field) == expected


CHOSEN_BY_NAME = [
    (Data, "name", DATASETS, []),
    (Model, "name", MODELS, []),
    (Model, "activation", ACTIVATIONS, []),
    (Noise, "law", LAWS, ["none"]),
    (Training, "loss", LOSSES, []),
]


@pytest.mark.parametrize(("section", "field", "registry", "more"), CHOSEN_BY_NAME, ids=lambda v: str(v)[:12])
def test_a_field_takes_each_name_of_its_registry_and_lists_them_for_any_other(section, field, registry, more):
    needed = {"image_folder": {"path": "."}, "arrays": {"path": "."}, "table": {"path": ".", "target": "y"}}
    for name in (*registry, *more):
        assert getattr(build(section, {field: name, **needed.get(name, {})}), field) == name
    with pytest.raises(ConfigError) as caught:
        build(section, {field: "zzz"})
    assert all(f"'{name}'" in str(caught.value) for name in (*registry, *more))


@pytest.mark.parametrize(("section", "field", "registry", "more"), CHOSEN_BY_NAME, ids=lambda v: str(v)[:12])
def test_a_field_takes_an_entry_of_the_user_s_own(section, field, registry, more, monkeypatch):
    monkeypatch.setattr(registry, "_added", {})
    registry.add("my_own")(object())
    assert getattr(build(section, {field: "my_own"}), field) == "my_own"


def test_the_noise_learns_what_the_config_allows():
    for learn in literals(Noise, "learn"):
        assert Gaussian(learn=learn).learn == learn
    with pytest.raises(ValueError, match="not allowed"):
        Gaussian(learn="everything")


def test_embedded_data_of_the_config_loads_without_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GLR_DATA", str(tmp_path))
    embedded = {"digits"}
    assert embedded <= set(DATASETS)
    for name in embedded:
        assert load_data(Data(name=name, download=False)).name == name


def test_an_empty_file_gives_every_default(tmp_path):
    resolved = loaded(tmp_path)
    assert resolved == Config()
    assert resolved.estimator.sampler == "orthogonal"  # `auto` never stays


@pytest.mark.parametrize("name", sorted(literals(Estimator, "name")))
@pytest.mark.parametrize("law", sorted(LAWS))
def test_the_defaults_resolve_for_every_estimator_and_law(tmp_path, name, law):
    pairs = ["estimator.antithetic=false"] * (law == "gumbel" and name != "pathwise")  # it is not symmetric
    resolved = loaded(tmp_path, "", f"estimator.name={name}", f"noise.law={law}", *pairs)
    gaussian = law == "gaussian" and name != "pathwise"
    assert resolved.estimator.sampler == ("orthogonal" if gaussian else "iid")


ROUND_TRIPS = {
    "defaults": "",
    "scales by pattern": "noise: {scale: {'1': 0.25, '*': 1.0e-3}, learn: unit, law: laplace}",
    "copies by pattern": "estimator: {copies: {'1': 20, '*': 4}, passes: {'*': 3}}",
    "lists": "model: {hidden: [7, 5, 3]}\nnoise: {names: ['a.*', 'b?']}\ndiagnose: {copies: [2], passes: [1, 5]}",
    "no hidden layer": "model: {hidden: []}",
    "schedule": "training: {schedule: {name: StepLR, step_size: 3, gamma: 0.5, per: step}}",
    "optimizer": "training: {optimizer: {name: AdamW, lr: 1e-2, betas: [0.8, 0.9], amsgrad: true}}",
    "numbers that YAML takes for text": "noise: {scale: 1e-2}\nmodel: {init_scale: 5e-1}",
    "names that YAML takes for other things": "data: {root: 'no'}",
    "extreme numbers": "seed: 9223372036854775807\nnoise: {scale: 1.0e-300, floor: 1.7976931348623157e+308}",
    "scales by epoch": "noise: {scale: 1, schedule: {9: {'1': 0.2, '*': 0.1}, 4: 0.5}}",
    "input noise": "noise: {input: {scale: 0.5, ramp: 3}}",
    "penalty": "training: {penalty: {spectral: {'1': 0.05, '*': 1.0e-3}}}",
    "Unicode": "data: {root: /data/Μέτρηση}",
    "pathwise": "estimator: {name: pathwise}\nnoise: {law: none}",
}


@pytest.mark.parametrize("text", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_a_dumped_config_loads_to_an_equal_one(tmp_path, text):
    first = loaded(tmp_path, text)
    second = loaded(tmp_path, dump_config(first))
    assert second == first
    assert dump_config(second) == dump_config(first)


def test_a_dump_names_every_field(tmp_path):
    dumped = dump_config(Config())
    for name, field in Config.model_fields.items():
        assert f"{name}:" in dumped
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            assert all(f"  {inner}:" in dumped for inner in section.model_fields)


def test_the_scale_of_an_epoch_is_the_last_of_the_schedule_that_has_begun():
    noise = Noise(scale=1.0, schedule={9: {"1": 0.2, "*": 0.1}, 4: 0.5})
    found = [noise.scale_after(epochs) for epochs in (0, 3, 4, 8, 9, 20)]
    assert found == [1.0, 1.0, 0.5, 0.5, {"1": 0.2, "*": 0.1}, {"1": 0.2, "*": 0.1}]
    assert Noise(scale=0.3).scale_after(7) == 0.3


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1
    with pytest.raises(ValueError, match="frozen"):
        Config().noise.scale = 1.0


def test_the_kind_of_execution_may_stand_alone():
    assert build(Config, {"execution": "auto"}).execution == Execution(kind="auto")


def test_the_defaults_of_inline_are_allowed_when_written_out():
    assert Execution(actors=None, cpus_per_actor=1, gpus_per_actor=0) == Execution()


@pytest.mark.parametrize(("key", "value"), [("actors", 2), ("cpus_per_actor", 2), ("gpus_per_actor", 1)])
def test_what_is_for_actors_alone_is_refused_inline(key, value):
    with pytest.raises(ConfigError, match=rf"execution\.{key}: {value}.*has no effect with execution.kind 'inline'"):
        build(Config, {"execution": {key: value}})
    assert getattr(build(Config, {"execution": {"kind": "layers", key: value}}).execution, key) == value
