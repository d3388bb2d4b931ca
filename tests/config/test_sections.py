"""Sections: the names of the registries, defaults, round trips, and what never changes."""

from __future__ import annotations

from typing import get_args

import pytest
from config.written import loaded

from glr_dist import config
from glr_dist.config import Config, Estimator, Execution, Noise, Section
from glr_dist.data import load as load_data
from glr_dist.errors import ConfigError
from glr_dist.estimators import ESTIMATORS
from glr_dist.estimators.samplers import SAMPLERS
from glr_dist.losses import LOSSES
from glr_dist.nn import ACTIVATIONS
from glr_dist.noise import LAWS, Gaussian


def literals(section: type[Section], field: str) -> set[str]:
    return set(get_args(section.model_fields[field].annotation))


@pytest.mark.parametrize(
    ("section", "field", "registry", "more"),
    [
        (Noise, "law", LAWS, {"none"}),
        (Estimator, "name", ESTIMATORS, set()),
        (Estimator, "sampler", SAMPLERS, {"auto"}),
        (config.Training, "loss", LOSSES, set()),
        (config.Model, "activation", ACTIVATIONS, set()),
        (config.Diagnose, "reference", ESTIMATORS, {"auto"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_names_that_the_config_allows_are_those_of_the_registries(section, field, registry, more):
    expected = set(registry) | more
    if section is config.Diagnose:
        expected -= {"layerwise"}  # its objective is another one: it is no reference for anything else
    assert literals(section, field) == expected


def test_the_noise_learns_what_the_config_allows():
    for learn in literals(Noise, "learn"):
        assert Gaussian(learn=learn).learn == learn
    with pytest.raises(ValueError, match="not allowed"):
        Gaussian(learn="everything")


def test_embedded_data_of_the_config_loads_without_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GLR_DATA", str(tmp_path))
    embedded = {"digits"}
    assert embedded <= literals(config.Data, "name")
    for name in embedded:
        assert load_data(config.Data(name=name, download=False)).name == name


def test_an_empty_file_gives_every_default(tmp_path):
    resolved = loaded(tmp_path)
    assert resolved == Config()
    assert resolved.estimator.sampler == "orthogonal"  # `auto` never stays


@pytest.mark.parametrize("name", sorted(literals(Estimator, "name")))
@pytest.mark.parametrize("law", sorted(literals(Noise, "law") - {"none"}))
def test_the_defaults_resolve_for_every_estimator_and_law(tmp_path, name, law):
    resolved = loaded(tmp_path, "", f"estimator.name={name}", f"noise.law={law}")
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
    "Unicode": "data: {root: /data/Μέτρηση}",
    "pathwise": "estimator: {name: pathwise}\nnoise: {law: none}",
}


@pytest.mark.parametrize("text", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_a_dumped_config_loads_to_an_equal_one(tmp_path, text):
    first = loaded(tmp_path, text)
    second = loaded(tmp_path, config.dump_config(first))
    assert second == first
    assert config.dump_config(second) == config.dump_config(first)


def test_a_dump_names_every_field(tmp_path):
    dumped = config.dump_config(Config())
    for name, field in Config.model_fields.items():
        assert f"{name}:" in dumped
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            assert all(f"  {inner}:" in dumped for inner in section.model_fields)


def test_the_scale_of_an_epoch_is_the_last_of_the_schedule_that_has_begun():
    noise = config.Noise(scale=1.0, schedule={9: {"1": 0.2, "*": 0.1}, 4: 0.5})
    found = [noise.scale_after(epochs) for epochs in (0, 3, 4, 8, 9, 20)]
    assert found == [1.0, 1.0, 0.5, 0.5, {"1": 0.2, "*": 0.1}, {"1": 0.2, "*": 0.1}]
    assert config.Noise(scale=0.3).scale_after(7) == 0.3


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1
    with pytest.raises(ValueError, match="frozen"):
        Config().noise.scale = 1.0


def test_the_kind_of_execution_may_stand_alone():
    assert config.build(Config, {"execution": "auto"}).execution == Execution(kind="auto")


def test_the_defaults_of_inline_are_allowed_when_written_out():
    assert Execution(actors=None, cpus_per_actor=1, gpus_per_actor=0) == Execution()


@pytest.mark.parametrize(("key", "value"), [("actors", 2), ("cpus_per_actor", 2), ("gpus_per_actor", 1)])
def test_what_is_for_actors_alone_is_refused_inline(key, value):
    with pytest.raises(ConfigError, match=rf"execution\.{key}: {value}.*'inline' is this process alone"):
        config.build(Config, {"execution": {key: value}})
    assert getattr(config.build(Config, {"execution": {"kind": "layers", key: value}}).execution, key) == value
