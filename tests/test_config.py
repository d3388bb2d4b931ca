"""The configuration: strict keys, one-line errors, overrides, round trips, and what would be biased."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from glr_dist import config
from glr_dist.config import Config, Estimator, Execution, Noise, Section
from glr_dist.data import load as load_data
from glr_dist.errors import ConfigError
from glr_dist.estimators import ESTIMATORS
from glr_dist.losses import LOSSES
from glr_dist.nn import ACTIVATIONS
from glr_dist.noise import LAWS, SAMPLERS, Gaussian


def literals(section: type[Section], field: str) -> set[str]:
    return set(get_args(section.model_fields[field].annotation))


def loaded(tmp_path: Path, text: str = "", *overrides: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return config.load(path, overrides)


def mistake(tmp_path: Path, text: str = "", *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- names


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


# ---------------------------------------------------------------- defaults and round trips


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
    second = loaded(tmp_path, config.dump(first))
    assert second == first
    assert config.dump(second) == config.dump(first)


def test_whole_numbers_as_keys_are_text_wherever_they_come_from(tmp_path):
    text = "noise: {scale: {1: 0.5, '*': 1}, schedule: {4: {1: 0.2, '*': 0.1}}}"
    found = loaded(tmp_path, text, "noise.scale={1: 0.3, '*': 2}", "noise.schedule.4.1=0.4").noise
    assert (found.scale, found.schedule) == ({"1": 0.3, "*": 2}, {4: {"1": 0.4, "*": 0.1}})


def test_the_scale_of_an_epoch_is_the_last_of_the_schedule_that_has_begun():
    noise = config.Noise(scale=1.0, schedule={9: {"1": 0.2, "*": 0.1}, 4: 0.5})
    found = [noise.scale_after(epochs) for epochs in (0, 3, 4, 8, 9, 20)]
    assert found == [1.0, 1.0, 0.5, 0.5, {"1": 0.2, "*": 0.1}, {"1": 0.2, "*": 0.1}]
    assert config.Noise(scale=0.3).scale_after(7) == 0.3


def test_a_dump_names_every_field(tmp_path):
    dumped = config.dump(Config())
    for name, field in Config.model_fields.items():
        assert f"{name}:" in dumped
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            assert all(f"  {inner}:" in dumped for inner in section.model_fields)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1
    with pytest.raises(ValueError, match="frozen"):
        Config().noise.scale = 1.0


# ---------------------------------------------------------------- overrides


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
def test_a_bad_override_is_a_mistake(tmp_path, override, said):
    assert said in mistake(tmp_path, "", override)


def test_an_override_below_a_value_is_a_mistake(tmp_path):
    assert "not a mapping" in mistake(tmp_path, "seed: 3", "seed.inner=1")


# ---------------------------------------------------------------- mistakes

MISTAKES = [
    # file, words that the line holds
    ("modle: {}", ["modle: unknown key", "'model'"]),
    ("model: {hiden: [3]}", ["model.hiden: unknown key", "'hidden'"]),
    ("noise: {sigma: 1}", ["noise.sigma: unknown key", "law, scale, schedule, learn, floor"]),
    ("estimator: {copis: 2}", ["estimator.copis: unknown key", "'copies'"]),
    ("data: {name: minst}", ["data.name: 'minst'", "did you mean 'mnist'?"]),
    ("model: {activation: sigmod}", ["model.activation: 'sigmod'", "did you mean 'sigmoid'?"]),
    ("model: {activation: 3}", ["model.activation: 3", "'threshold'"]),
    ("model: {hidden: 8}", ["model.hidden: 8"]),
    ("model: {hidden: [8, 0]}", ["model.hidden.1: 0", "greater than or equal to 1"]),
    ("model: {hidden: [2.5]}", ["model.hidden.0: 2.5", "integer"]),
    ("model: {dropout: 1}", ["model.dropout: 1", "less than 1"]),
    ("model: {dropout: -0.1}", ["model.dropout: -0.1"]),
    ("noise: {scale: 0}", ["noise.scale: 0", "greater than 0"]),
    ("noise: {scale: -1}", ["noise.scale: -1", "greater than 0"]),
    ("noise: {scale: .nan}", ["noise.scale: nan", "finite"]),
    ("noise: {scale: .inf}", ["noise.scale: inf", "finite"]),
    ("noise: {scale: true}", ["noise.scale: True", "a number, not a truth value"]),
    ("noise: {scale: {'*': 0}}", ["noise.scale.*: 0", "greater than 0"]),
    ("noise: {scale: {1: 0.5, 3: -1}}", ["noise.scale.3: -1", "greater than 0"]),
    ("noise: {scale: {}}", ["noise.scale: {}", "a valid number or a mapping that is not empty"]),
    ("noise: {scale: big}", ["noise.scale: 'big'", "number"]),
    ("noise: {schedule: {2: 0}}", ["noise.schedule.2: 0", "greater than 0"]),
    ("noise: {schedule: {0: 1}}", ["noise.schedule.0: '0'", "greater than or equal to 1"]),
    ("noise: {schedule: {early: 1}}", ["noise.schedule.early: 'early'", "integer"]),
    ("noise: {schedule: {2: {1: 0.5, '*': -1}}}", ["noise.schedule.2.*: -1", "greater than 0"]),
    ("noise: {schedule: {2: 1, '2': 3}}", ["'2' stands twice"]),
    ("noise: {schedule: {2: 1}, learn: site}", ["noise.schedule", "noise.learn 'site'"]),
    ("noise: {schedule: {2: 1}, law: none}\nestimator: {name: pathwise}", ["noise.schedule", "noise.law 'none'"]),
    ("noise: {schedule: {3: 1}}\ntraining: {epochs: 3}", ["noise.schedule: 3", "training.epochs=3"]),
    ("noise: {sites: []}", ["noise.sites", "at least 1"]),
    ("noise: {names: []}", ["noise.names", "at least 1"]),
    ("estimator: {copies: 0}", ["estimator.copies: 0", "greater than or equal to 1"]),
    ("estimator: {copies: many}", ["estimator.copies: 'many'", "integer"]),
    ("estimator: {passes: 0}", ["estimator.passes: 0"]),
    ("estimator: {antithetic: perhaps}", ["estimator.antithetic: 'perhaps'", "boolean"]),
    ("seed: -1", ["seed: -1", "greater than or equal to 0"]),
    ("seed: 9223372036854775808", ["seed: 9223372036854775808"]),
    ("seed: 1.5", ["seed: 1.5", "integer"]),
    ("training: {epochs: 0}", ["training.epochs: 0"]),
    ("training: {keep_checkpoints: 1}", ["training.keep_checkpoints: 1", "2"]),
    ("training: {optimizer: Adam}", ["training.optimizer: 'Adam'"]),
    ("training: {schedule: {per: step}}", ["training.schedule.name: is missing"]),
    ("training: {schedule: {name: StepLR, per: day}}", ["training.schedule.per: 'day'", "'step' or 'epoch'"]),
    ("data: {validation: 1}", ["data.validation: 1", "less than 1"]),
    ("data: {test: 0}", ["data.test: 0", "greater than 0"]),
    ("execution: {device: gpu}", ["execution.device: 'gpu'"]),
    ("execution: {threads: 0}", ["execution.threads: 0"]),
    ("execution: {actors: 2}", ["execution.actors: 2", "inline"]),
    ("execution: {gpus_per_actor: 0.5}", ["execution.gpus_per_actor: 0.5", "inline"]),
    ("diagnose: {draws: 1}", ["diagnose.draws: 1", "2"]),
    ("diagnose: {copies: []}", ["diagnose.copies", "at least 1"]),
    ("diagnose: {reference: layerwise}", ["diagnose.reference: 'layerwise'"]),
    ("model: 3", ["model: 3"]),
    ("1: 2", ["1: unknown key", "seed, data, model"]),
    ("true: 2", ["True", "strings"]),
    ("- 1", ["must hold a mapping of sections, holds a list"]),
    ("a: [1\nb: }", ["is not YAML"]),
    ("a: \x07", ["is not YAML"]),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=[text.replace("\n", " ") for text, _ in MISTAKES])
def test_a_mistake_is_one_line_with_the_field_the_value_and_what_is_allowed(tmp_path, text, words):
    message = mistake(tmp_path, text)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("missing.yaml", None, "No such file"), ("binary.yaml", b"\xff\xfe\x00\x80", "not text")],
)
def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        config.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path)


def test_build_puts_the_section_before_the_field():
    with pytest.raises(ConfigError, match=r"^estimator\.copys: unknown key; did you mean 'copies'\?$"):
        config.build(Estimator, {"copys": 3}, "estimator.")


# ---------------------------------------------------------------- combinations that are refused

REFUSED = [
    # estimator, noise, loss, the field at fault, the reason
    ({"copies": 7}, {}, None, "estimator.copies", "odd"),
    ({"copies": {"1": 8, "*": 5}}, {}, None, "estimator.copies", "5 is odd"),
    ({"sampler": "orthogonal"}, {"law": "laplace"}, None, "estimator.sampler", "gaussian"),
    ({"sampler": "orthogonal"}, {"law": "logistic"}, None, "estimator.sampler", "gaussian"),
    ({"sampler": "sobol", "baseline": "leave_one_out"}, {}, None, "estimator.baseline", "biased"),
    (
        {"sampler": "orthogonal", "baseline": "leave_one_out"},
        {"learn": "unit"},
        None,
        "estimator.baseline",
        "biased for unit scales",
    ),
    ({"baseline": "leave_one_out", "copies": 2}, {}, None, "estimator.copies", "at least 4"),
    (
        {"baseline": "leave_one_out", "copies": 1, "antithetic": False, "sampler": "iid"},
        {},
        None,
        "estimator.copies",
        "at least 2",
    ),
    ({"baseline": "leave_one_out", "copies": {"1": 8, "*": 2}}, {}, None, "estimator.copies", "at least 4"),
    ({"name": "joint", "copies": {"*": 8}}, {}, None, "estimator.copies", "all sites at once"),
    ({"name": "joint", "passes": {"*": 1}}, {}, None, "estimator.passes", "all sites at once"),
    ({"name": "joint", "passes": 2}, {}, None, "estimator.passes", "only 1"),
    ({"name": "layerwise", "passes": 2}, {}, None, "estimator.passes", "only 1"),
    ({"name": "layerwise", "passes": {"1": 1, "*": 2}}, {}, None, "estimator.passes", "only 1"),
    ({"exact_head": True}, {}, "zero_one", "estimator.exact_head", "no derivative"),
    ({}, {"law": "none"}, None, "noise.law", "needs noise"),
    ({"name": "joint"}, {"law": "none"}, None, "noise.law", "needs noise"),
    ({"name": "pathwise", "copies": 8}, {}, None, "estimator.copies", "redraws nothing"),
    ({"name": "pathwise", "antithetic": False}, {}, None, "estimator.antithetic", "redraws nothing"),
    ({"name": "pathwise", "baseline": "none"}, {}, None, "estimator.baseline", "redraws nothing"),
    ({"name": "pathwise", "exact_head": True}, {}, None, "estimator.exact_head", "redraws nothing"),
    ({"name": "pathwise", "sampler": "sobol"}, {}, None, "estimator.sampler", "redraws nothing"),
    ({"name": "pathwise", "passes": {"*": 2}}, {}, None, "estimator.passes", "one number"),
    ({"name": "pathwise", "passes": 2}, {"law": "none"}, None, "noise.law", "one pass"),
    ({"name": "pathwise"}, {"law": "none", "learn": "site"}, None, "noise.law", "no scale to learn"),
    ({"name": "pathwise"}, {}, "zero_one", "training.loss", "no derivative"),
]


@pytest.mark.parametrize(("estimator", "noise", "loss", "field", "reason"), REFUSED, ids=str)
def test_a_combination_that_would_be_biased_or_mean_nothing_is_refused(estimator, noise, loss, field, reason):
    values = {"estimator": estimator, "noise": noise, "training": {"loss": loss} if loss else {}}
    with pytest.raises(ConfigError) as caught:
        config.build(Config, values)
    message = str(caught.value)
    assert message.startswith(f"{field}: ")
    assert reason in message
    assert "\n" not in message


ALLOWED = [
    # the nearest allowed neighbours of what is refused: a check that refuses too much fails here
    ({"copies": 7, "antithetic": False}, {}, None),
    ({"sampler": "iid"}, {"law": "laplace"}, None),
    ({"sampler": "sobol"}, {"law": "logistic"}, None),
    ({"sampler": "orthogonal", "baseline": "leave_one_out"}, {"learn": "site"}, None),
    ({"sampler": "iid", "baseline": "leave_one_out"}, {"learn": "unit"}, None),
    ({"baseline": "leave_one_out", "copies": 4}, {}, None),
    ({"baseline": "leave_one_out", "copies": 2, "antithetic": False}, {}, None),
    ({"name": "layerwise", "copies": {"*": 8}, "passes": {"*": 1}}, {}, None),
    ({"passes": {"*": 8}}, {}, "zero_one"),
    ({"exact_head": True}, {}, "cross_entropy"),
    ({"name": "pathwise"}, {"law": "none"}, "cross_entropy"),
    ({"name": "pathwise", "passes": 4, "sampler": "iid"}, {"learn": "unit"}, None),
]


@pytest.mark.parametrize(("estimator", "noise", "loss"), ALLOWED, ids=str)
def test_the_neighbours_of_what_is_refused_are_allowed(estimator, noise, loss):
    values = {"estimator": estimator, "noise": noise, "training": {"loss": loss} if loss else {}}
    resolved = config.build(Config, values)
    for key, value in estimator.items():
        assert getattr(resolved.estimator, key) == value


def test_the_defaults_of_inline_are_allowed_when_written_out():
    assert Execution(actors=None, cpus_per_actor=1, gpus_per_actor=0) == Execution()


def test_a_key_that_stands_twice_is_named(tmp_path):
    (tmp_path / "twice.yaml").write_text("noise:\n  scale: 1\n  law: laplace\n  scale: 2\n")
    with pytest.raises(ConfigError, match="the key 'scale' stands twice"):
        config.load(tmp_path / "twice.yaml")


def test_the_kind_of_execution_may_stand_alone():
    assert config.build(Config, {"execution": "auto"}).execution == Execution(kind="auto")


@pytest.mark.parametrize(("key", "value"), [("actors", 2), ("cpus_per_actor", 2), ("gpus_per_actor", 1)])
def test_what_is_for_actors_alone_is_refused_inline(key, value):
    with pytest.raises(ConfigError, match=rf"execution\.{key}: {value}.*'inline' is this process alone"):
        config.build(Config, {"execution": {key: value}})
    assert getattr(config.build(Config, {"execution": {"kind": "layers", key: value}}).execution, key) == value
