"""Suites: contents, files, and one-line errors."""

from __future__ import annotations

from typing import get_args

import pytest

from glr_dist.errors import ConfigError
from glr_dist.robustness import suite as suites
from glr_dist.robustness.attacks import ATTACKS
from glr_dist.robustness.conditions import Attacked, Corrupted, conditions_of, networks_of
from glr_dist.robustness.corruptions import CONSTANTS, CORRUPTIONS
from glr_dist.robustness.suite import SUITES, Suite, load_suite

SECTIONS = {
    section().name: section
    for section in (suites.FGSM, suites.PGD, suites.LBFGS, suites.TorchLBFGS, suites.Square, suites.RandomSign)
}


def test_names_match_the_registries():
    assert SECTIONS.keys() == ATTACKS.keys()
    assert set(get_args(suites.Corruption)) == set(CORRUPTIONS)
    assert set(get_args(suites.Corruptions.model_fields["constants"].annotation)) == set(CONSTANTS)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_attack_accepts_the_fields_of_its_section(name):
    suite = Suite(attacks=(SECTIONS[name](),), corruptions=suites.Corruptions(names=()))
    for condition in conditions_of(suite, 10)[1:]:
        attack = ATTACKS[name](**condition.parameters())
        assert getattr(attack, "eps", None) == condition.eps
        # The defaults in Python equal the defaults in a suite.
        assert attack == ATTACKS[name](**({} if condition.eps is None else {"eps": condition.eps}))


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_survives_a_file(name, tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(SUITES[name].model_dump_json())  # JSON is YAML
    assert load_suite(str(path)) == SUITES[name] == load_suite(name)


def test_the_paper_suite_contains_the_papers_conditions():
    labels = {condition.label for condition in conditions_of(SUITES["paper"], 10_000)}
    assert {f"fgsm/transfer/eps_{eps}" for eps in (0.1, 0.13, 0.2, 0.3)} <= labels
    corrupted = ("gaussian_noise", "impulse_noise", "glass_blur", "contrast")
    assert {f"{name}/s{severity}" for name in corrupted for severity in range(1, 6)} <= labels
    counts = {condition.label: condition.examples for condition in conditions_of(SUITES["paper"], 10_000)}
    assert counts["clean"] == 10_000
    assert counts["lbfgs/transfer"] == 1000
    assert counts["square/black_box/eps_0.1"] == 200


@pytest.mark.parametrize(("name", "hidden"), [("authors", (100, 50)), ("authors_50", (50,))])
def test_the_protocol_of_the_authors(name, hidden):
    suite = SUITES[name]
    labels = [condition.label for condition in conditions_of(suite, 10_000)]
    attacks = ["fgsm/transfer/eps_0.1", "fgsm/transfer/eps_0.13", "torch_lbfgs/transfer"]
    corrupted = ("gaussian_noise", "impulse_noise", "glass_blur", "contrast")
    assert labels == ["clean", *attacks, *(f"{name}/s{severity}" for name in corrupted for severity in range(1, 6))]
    assert suite.corruptions.constants == "authors"
    assert suite.surrogate.model.hidden == hidden
    optimizer = suite.surrogate.training.optimizer
    assert optimizer.arguments == {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}


def test_conditions_use_at_most_the_available_images():
    suite = load_suite("quick", ["examples=50", "attacks=[{name: square, eps: [0.1, 0.2], examples: 80}]"])
    assert [condition.examples for condition in conditions_of(suite, 30)] == [30] * 15
    assert {condition.examples for condition in conditions_of(suite, 1000)} == {50}


def test_labels_distinguish_norms():
    attack = suites.PGD(norm="l2", threats=("transfer",), eps=0.5)
    assert Attacked(attack, 1, "transfer", "l2", 0.5).label == "pgd_l2/transfer/eps_0.5"
    assert Corrupted("fog", 3, 1).label == "fog/s3"


NEEDS = {
    "attacks=[{name: fgsm, threats: [white_box]}]": set(),
    "attacks=[{name: square}]": set(),
    "attacks=[{name: fgsm, threats: [adaptive]}]": {"smoothed"},
    "attacks=[{name: lbfgs, threats: [transfer]}]": {"surrogate"},
    "attacks=[{name: torch_lbfgs}]": {"surrogate"},
    "surrogate_right=true": {"surrogate"},
    "corruptions.names=[fog]": {"baseline", "surrogate"},
    "baseline=run": set(),
}


@pytest.mark.parametrize("override", NEEDS)
def test_only_the_networks_that_the_conditions_use_are_needed(override):
    suite = load_suite("quick", ["attacks=[]", "corruptions.names=[]", override])
    assert networks_of(suite, conditions_of(suite, 1)) == NEEDS[override]


def test_a_named_baseline_needs_no_surrogate():
    suite = load_suite("quick", ["attacks=[]", "baseline=run"])
    assert networks_of(suite, conditions_of(suite, 1)) == {"baseline"}


ERRORS = [
    ("quick", ["attacks=[{name: fgms}]"], ["attacks.0.name: 'fgms'", "did you mean 'fgsm'?"]),
    ("quick", ["attacks=[{eps: 0.1}]"], ["attacks.0.name: is missing"]),
    ("quick", ["attacks=[{name: fgsm, eps: -0.1}]"], ["attacks.0.eps.0: -0.1", "greater than 0"]),
    ("quick", ["attacks=[{name: fgsm, eps: [0.1, 0]}]"], ["attacks.0.eps.1: 0", "greater than 0"]),
    ("quick", ["attacks=[{name: fgsm, eps: []}]"], ["attacks.0.eps", "at least 1"]),
    ("quick", ["attacks=[{name: pgd, stepz: 3}]"], ["attacks.0.stepz: unknown key", "'steps'"]),
    ("quick", ["attacks=[{name: pgd, threats: [whitebox]}]"], ["attacks.0.threats.0: 'whitebox'", "'white_box'"]),
    ("quick", ["attacks=[{name: lbfgs, threats: [adaptive]}]"], ["attacks.0.threats.0: 'adaptive'"]),
    ("quick", ["attacks=fgsm"], ["attacks: 'fgsm'"]),
    ("quick", ["attacks=[{name: fgsm}, {name: fgsm}]"], ["'fgsm/white_box/eps_0.1' occurs twice"]),
    ("quick", ["corruptions.names=[glas_blur]"], ["corruptions.names.0: 'glas_blur'", "did you mean 'glass_blur'?"]),
    ("quick", ["corruptions.severities=[6]"], ["corruptions.severities.0: 6", "5"]),
    ("quick", ["corruptions.constants=cifar"], ["corruptions.constants: 'cifar'", "'cifar_c'"]),
    ("quick", ["inference.votes=-1"], ["inference.votes: -1"]),
    ("quick", ["adaptive.copies=3"], ["adaptive.copies: 3", "multiple of 2"]),
    ("quick", ["adaptive.spreads=[0.1, 0]"], ["adaptive.spreads.1: 0", "greater than 0"]),
    ("quick", ["split=train"], ["split: 'train'", "'validation'"]),
    ("quick", ["surrogate.model.hidden=[0]"], ["surrogate.model.hidden.0: 0"]),
    ("quick", ["surogate=1"], ["surogate: unknown key", "'surrogate'"]),
    ("quick", ["examples"], ["section.key=value"]),
    ("papr", [], ["--suite: 'papr'", "paper, quick, full"]),
    ("missing.yaml", [], ["missing.yaml: cannot be read"]),
]


@pytest.mark.parametrize(("name", "overrides", "words"), ERRORS, ids=str)
def test_an_error_is_one_line_with_the_field_the_value_and_the_allowed_values(name, overrides, words):
    with pytest.raises(ConfigError) as raised:
        conditions_of(load_suite(name, overrides), 10)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)
