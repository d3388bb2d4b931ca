"""The message of an error is one line: the field, the value, what is allowed."""

from __future__ import annotations

import pytest
from config.written import error_of

from glr_dist.config import Estimator, build
from glr_dist.errors import ConfigError

ERRORS = [
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
    ("noise: {scale: true}", ["noise.scale: True", "a number, not a boolean"]),
    ("noise: {scale: {'*': 0}}", ["noise.scale.*: 0", "greater than 0"]),
    ("noise: {scale: {1: 0.5, 3: -1}}", ["noise.scale.3: -1", "greater than 0"]),
    ("noise: {scale: {}}", ["noise.scale: {}", "a valid number or a non-empty mapping"]),
    ("noise: {scale: big}", ["noise.scale: 'big'", "number"]),
    ("noise: {schedule: {2: 0}}", ["noise.schedule.2: 0", "greater than 0"]),
    ("noise: {schedule: {0: 1}}", ["noise.schedule.0: '0'", "greater than or equal to 1"]),
    ("noise: {schedule: {early: 1}}", ["noise.schedule.early: 'early'", "integer"]),
    ("noise: {schedule: {2: {1: 0.5, '*': -1}}}", ["noise.schedule.2.*: -1", "greater than 0"]),
    ("noise: {schedule: {2: 1, '2': 3}}", ["'2' occurs twice"]),
    ("noise: {schedule: {2: 1}, learn: site}", ["noise.schedule", "noise.learn 'site'"]),
    ("noise: {schedule: {2: 1}, law: none}\nestimator: {name: pathwise}", ["noise.schedule", "noise.law 'none'"]),
    ("noise: {schedule: {3: 1}}\ntraining: {epochs: 3}", ["noise.schedule: 3", "training.epochs=3"]),
    ("noise: {sites: []}", ["noise.sites", "at least 1"]),
    ("noise: {names: []}", ["noise.names", "at least 1"]),
    ("estimator: {copies: 0}", ["estimator.copies: 0", "greater than or equal to 1"]),
    ("estimator: {copies: many}", ["estimator.copies: 'many'", "integer"]),
    ("estimator: {passes: 0}", ["estimator.passes: 0"]),
    ("estimator: {antithetic: perhaps}", ["estimator.antithetic: 'perhaps'", "true or false"]),
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
    ("true: 2", ["true: unknown key", "seed, data, model"]),
    ("- 1", ["must hold a mapping of sections, holds a list"]),
    ("a: [1\nb: }", ["is not YAML"]),
    ("a: \x07", ["is not YAML"]),
]


@pytest.mark.parametrize(("text", "words"), ERRORS, ids=[text.replace("\n", " ") for text, _ in ERRORS])
def test_an_error_is_one_line_with_the_field_the_value_and_what_is_allowed(tmp_path, text, words):
    message = error_of(tmp_path, text)
    for word in words:
        assert word in message


def test_build_puts_the_section_before_the_field():
    with pytest.raises(ConfigError, match=r"^estimator\.copys: unknown key; did you mean 'copies'\?$"):
        build(Estimator, {"copys": 3}, "estimator.")
