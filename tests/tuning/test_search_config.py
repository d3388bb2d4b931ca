"""The file of a search: valid searches, points and their configurations, and one line per error."""

from __future__ import annotations

import copy
import json
import random

import pytest
import yaml

from glr_dist import cli
from glr_dist.config import dump_config, load_config
from glr_dist.errors import ConfigError
from glr_dist.nn import ACTIVATIONS
from glr_dist.tuning import search_config
from glr_dist.tuning.points import grid_point, grid_size, point_of, with_point
from glr_dist.tuning.ranges import parse_space
from glr_dist.tuning.search_config import load_search
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial_record import TrialRecord, read_records

GRID = {"algorithm": "grid", "trials": None}
PBT = {"algorithm": "pbt"}
FGSM = {"attacks": [{"name": "fgsm"}]}

INVALID = {
    # changes of the section `tune`: words of the error line
    "unknown field": ({"space": {"noise.scael": {"choice": [1]}}}, ["tune.space.noise.scael: 1", "'scale'"]),
    "unknown section": ({"space": {"nois.scale": {"choice": [1]}}}, ["tune.space.nois.scale: 1", "'noise'"]),
    "unknown range": ({"space": {"noise.scale": {"unifrom": [1, 2]}}}, ["noise.scale.unifrom", "'uniform'"]),
    "no range": ({"space": {"noise.scale": 3}}, ["tune.space.noise.scale: 3", "loguniform"]),
    "two ranges": (
        {"space": {"noise.scale": {"choice": [1], "grid": [1]}}},
        ["tune.space.noise.scale", "use exactly one"],
    ),
    "no space": ({"space": {}}, ["tune.space"]),
    "ends in the wrong order": ({"space": {"noise.scale": {"uniform": [2, 1]}}}, ["noise.scale.uniform: [2.0, 1.0]"]),
    "log of 0": ({"space": {"noise.scale": {"loguniform": [0, 1]}}}, ["noise.scale.loguniform.0: 0"]),
    "an end that is impossible": ({"space": {"noise.scale": {"uniform": [-1, 1]}}}, ["noise.scale: -1.0", "possible"]),
    "a choice that is impossible": ({"space": {"noise.law": {"choice": ["gaussian", "cauchy"]}}}, ["'cauchy'"]),
    "a site that is not there": ({"space": {"noise.scale.7": {"choice": [1]}}}, ["noise.scale.7: 1", "sites are 1, 3"]),
    "a field and its part": (
        {"space": {"noise.scale": {"choice": [1]}, "noise.scale.1": {"choice": [1]}}},
        ["tune.space.noise.scale.1", "noise.scale is searched too"],
    ),
    "a pattern without effect": (
        {"space": {"noise.scale.*": {"choice": [1]}, "noise.scale.1": {"choice": [1]}}},
        ["tune.space.noise.scale.1", "no effect", "put it first"],
    ),
    "grace without asha": ({"grace": 2}, ["tune.grace: 2", "'asha'"]),
    "an argument": ({"space": {"training.optimizer.lrr": {"choice": [1]}}}, ["training.optimizer.lrr: 1", "'lr'"]),
    "a field that changes no result": ({"space": {"execution.threads": {"choice": [1, 2]}}}, ["execution.threads"]),
    "unknown objective": ({"objectives": "validation/acuracy"}, ["tune.objectives", "'validation/accuracy'"]),
    "objective twice": ({"objectives": ["validation/loss"] * 2}, ["tune.objectives", "listed twice"]),
    "robust without attack": (
        {"objectives": "robust/transfer/fgsm/eps_0.1/accuracy"},
        ["tune.objectives", "tune.robustness"],
    ),
    "attack that is not in the suite": (
        {"objectives": "robust/transfer/fgsm/eps_0.2/accuracy", "robustness": FGSM},
        ["tune.objectives", "did you mean 'robust/transfer/fgsm/eps_0.1/accuracy'"],
    ),
    "white box without derivative": (
        {"objectives": "robust/white_box/fgsm/eps_0.1/accuracy", "robustness": FGSM},
        ["tune.objectives", "threshold", "transfer"],
    ),
    "the test set": ({"robustness": {"split": "test"}}, ["tune.robustness.split: 'test'", "validation"]),
    "unknown attack": ({"robustness": {"attacks": [{"name": "fgms"}]}}, ["tune.robustness.attacks.0.name", "'fgsm'"]),
    "range in a grid": ({**GRID}, ["tune.space.noise.scale", "'loguniform'", "'grid'"]),
    "grid without grid": ({"space": {"noise.scale": {"grid": [1, 2]}}}, ["tune.space.noise.scale", "use 'choice'"]),
    "grid that is stopped": (
        {**GRID, "space": {"noise.scale": {"grid": [1, 2]}}, "scheduler": "asha"},
        ["tune.scheduler", "'none'"],
    ),
    "trials of a grid": (
        {**GRID, "space": {"noise.scale": {"grid": [1, 2]}}, "trials": 3},
        ["tune.trials: 3", "2 points"],
    ),
    "asha without an epoch's figure": (
        {"objectives": "clean/accuracy", "robustness": FGSM, "scheduler": "asha"},
        ["tune.scheduler", "validation/accuracy"],
    ),
    "asha without the metrics of a section": (
        {"objectives": "robust/quick-validation/fgsm_transfer_eps_0.1", "scheduler": "asha"},
        ["tune.objectives", "robustness.every"],
    ),
    "asha with no time": ({"scheduler": "asha", "grace": 2}, ["tune.grace: 2", "2 training.epochs"]),
    "asha and lengths": (
        {"scheduler": "asha", "space": {"training.epochs": {"choice": [1, 2]}}},
        ["tune.space.training.epochs", "equal length"],
    ),
    "a population of other fields": (
        {**PBT, "space": {"training.optimizer.lr": {"uniform": [0.001, 0.02]}}},
        ["tune.space.training.optimizer.lr", "noise.scale", "'optuna'"],
    ),
    "a population of a list": (
        {**PBT, "space": {"noise.scale": {"choice": [1, 2]}}},
        ["tune.space.noise.scale: 'choice'", "'loguniform'"],
    ),
    "a population that is stopped": ({**PBT, "scheduler": "asha"}, ["tune.scheduler: 'asha'"]),
    "a population of two": ({**PBT, "trials": 2}, ["tune.trials: 2", "at least 4"]),
    "no selection": ({**PBT, "interval": 2}, ["tune.interval: 2", "2 training.epochs"]),
    "an interval without a population": ({"interval": 2}, ["tune.interval: 2", "'optuna'"]),
    "CPUs of actors": ({"actors_per_trial": 2, "cpus_per_trial": 2}, ["tune.cpus_per_trial: 2"]),
    "unknown algorithm": ({"algorithm": "optunna"}, ["tune.algorithm: 'optunna'", "did you mean 'optuna'"]),
    "unknown scheduler": ({"scheduler": "hyperband"}, ["tune.scheduler: 'hyperband'", "known are asha, none"]),
    "grid in a population": ({**PBT, "space": {"noise.scale": {"grid": [1, 2]}}}, ["tune.space.noise.scale: 'grid'"]),
    "a choice of null": (
        {"space": {"noise.scale": {"choice": None}}},
        ["noise.scale.choice: None", "a list of values"],
    ),
    "a choice of nothing": ({"space": {"noise.scale": {"choice": []}}}, ["noise.scale.choice: []", "a list of values"]),
    "a choice of a mapping": ({"space": {"noise.scale": {"choice": {"a": 1}}}}, ["noise.scale.choice", "a list"]),
    "a range of null": ({"space": {"noise.scale": {"loguniform": None}}}, ["noise.scale.loguniform: None", "[LOWER"]),
    "a range with one end": (
        {"space": {"noise.scale": {"loguniform": [1]}}},
        ["noise.scale.loguniform: [1]", "[LOWER"],
    ),
    "a range with three ends": ({"space": {"noise.scale": {"uniform": [1, 2, 3]}}}, ["[1, 2, 3]", "[LOWER, UPPER]"]),
    "a range that overflows": ({"space": {"noise.scale": {"uniform": [1, 1e308]}}}, ["noise.scale.uniform.1: 1e+308"]),
    "a ratio that overflows": ({"space": {"noise.scale": {"loguniform": [1e-320, 1]}}}, ["noise.scale.loguniform.0"]),
    "a range of huge integers": ({"space": {"seed": {"randint": [0, 10**60]}}}, ["tune.space.seed.randint.1"]),
    "a long list": ({"space": {"seed": {"choice": [*range(1001)]}}}, ["tune.space.seed.choice", "at most 1000"]),
    "a long value": ({"space": {"noise.law": {"choice": ["x" * 10**5]}}}, ["tune.space.noise.law: 'xxx", "possible"]),
    "a long field": ({"space": {"x" * 10**5: {"choice": [1]}}}, ["tune.space: 'xxx"]),
    "a field of two lines": ({"space": {"noise.\nscale": {"choice": [1]}}}, ["tune.space: 'noise.\\nscale'"]),
    "a space of text": ({"space": "x" * 10**5}, ["tune.space: 'xxx", "a mapping"]),
    "a grid of 10⁹ points": (
        {**GRID, "space": {f"training.optimizer.a{i}": {"grid": [*range(10)]} for i in range(9)}},
        ["tune.space: a grid of 1000000000 points", "100000"],
    ),
    "a grid of 10⁹ points with trials": (
        {
            "algorithm": "grid",
            "trials": 3,
            "space": {f"training.optimizer.a{i}": {"grid": [*range(1000)]} for i in "abc"},
        },
        ["tune.trials: 3", "1000000000 points"],
    ),
    "a huge number of trials": ({"trials": 10**30}, ["tune.trials: 1000", "100000"]),
    "huge CPUs": ({"cpus_per_trial": 1e308}, ["tune.cpus_per_trial: 1e+308", "1000"]),
    "huge actors": ({"actors_per_trial": 10**60}, ["tune.actors_per_trial: 1000", "10000"]),
    "huge concurrency": ({"concurrent": 10**60}, ["tune.concurrent: 1000", "10000"]),
    "objectives of a number": ({"objectives": 3}, ["tune.objectives: 3"]),
    "an algorithm of a list": ({"algorithm": ["grid"]}, ["tune.algorithm: ['grid']"]),
    "seeds of a population": ({**PBT, "seeds": 3}, ["tune.seeds: 3", "'pbt'"]),
    "seeds and asha": ({"scheduler": "asha", "seeds": 3}, ["tune.seeds: 3", "'asha'", "'none'"]),
    "seeds and a searched seed": ({"space": {"seed": {"choice": [1]}}, "seeds": 3}, ["tune.seeds: 3", "tune.space"]),
    "no seeds": ({"seeds": 0}, ["tune.seeds: 0"]),
    "huge seeds": ({"seeds": 10**9}, ["tune.seeds: 1000000000", "1000"]),
    "two GPUs in one process": ({"gpus_per_trial": 2}, ["tune.gpus_per_trial: 2", "1"]),
    "GPUs of actors": ({"gpus_per_trial": 0.5, "actors_per_trial": 2}, ["tune.gpus_per_trial: 0.5", "CPUs"]),
    "no trials": ({"trials": 0}, ["tune.trials: 0"]),
    "unknown key": ({"trails": 3}, ["tune.trails", "'trials'"]),
}


def error_line(capsys, *arguments):
    assert cli.main(["tune", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "words"), INVALID.values(), ids=INVALID)
def test_an_invalid_search_is_one_line_before_anything_is_written(capsys, tmp_path, tiny_search_yaml, changes, words):
    values = yaml.safe_load(tiny_search_yaml.read_text())
    values["tune"].update(changes)
    tiny_search_yaml.write_text(yaml.safe_dump(values))
    line = error_line(capsys, tiny_search_yaml, "--out", tmp_path / "out")
    assert all(word in line for word in words), line
    assert len(line) < 1000
    assert not (tmp_path / "out").exists()


QUICK = "robust/quick-validation/fgsm_transfer_eps_0.1"


def test_metrics_of_robustness_are_objectives(tiny_search):
    search = tiny_search("robustness.every=1", f"tune.objectives={QUICK}", "tune.scheduler=asha")
    assert search.tune.watched == QUICK
    with pytest.raises(ConfigError, match=r"is measured on test images; use robustness\.split: validation"):
        name = QUICK.replace("validation", "test")
        tiny_search("robustness={every: 1, split: test}", f"tune.objectives={name}")
    with pytest.raises(ConfigError, match="did you mean"):
        tiny_search("robustness={every: 1}", f"tune.objectives={QUICK}5")
    with pytest.raises(ConfigError, match=r"tune\.interval: 3 is not a multiple of robustness\.every=2"):
        population = ["tune.algorithm=pbt", "tune.interval=3", "training.epochs=8"]
        tiny_search("robustness.every=2", f"tune.objectives={QUICK}", *population)
    with pytest.raises(ConfigError, match=r"tune\.space\.robustness\.every: changes no result"):
        tiny_search("robustness.every=2", "tune.space={robustness.every: {choice: [1, 2]}}")


def test_a_search_with_other_evaluations_is_another_search(tiny_search, tmp_path):
    search = tiny_search("robustness.every=1", f"tune.objectives={QUICK}")
    (tmp_path / "tune.yaml").write_text(search.dump())
    search.check_same(tmp_path / "tune.yaml")
    with pytest.raises(ConfigError, match=r"robustness\.examples: the search in .* has None, not 50"):
        tiny_search("robustness={every: 1, examples: 50}", f"tune.objectives={QUICK}").check_same(
            tmp_path / "tune.yaml"
        )


@pytest.mark.slow
def test_a_mutated_search_loads_or_is_one_line(tiny_search_yaml):
    """Replaces random parts of the section by values that are seldom right."""
    odd = [None, True, -1, 0, 1e308, float("nan"), 10**40, "", "x" * 500, [], [[]], {}, {"choice": [1]}, {"": None}]
    stream = random.Random(0)
    whole = yaml.safe_load(tiny_search_yaml.read_text())
    whole["tune"] |= {"objectives": ["validation/loss"], "robustness": FGSM, "algorithm": "random", "seed": 1}
    loaded = 0
    for _ in range(400):
        values = copy.deepcopy(whole)
        places = list(places_in(values["tune"]))
        holder, key = stream.choice(places)
        holder[key] = stream.choice(odd)
        tiny_search_yaml.write_text(yaml.safe_dump(values))
        try:
            load_search(tiny_search_yaml)
            loaded += 1
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1
            assert len(str(error)) < 1000
    assert 0 < loaded < 200


def places_in(value):
    """Returns every (container, key) in nested mappings and lists."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places_in(value[key])


def test_a_file_without_a_search_or_with_actors_is_one_line(capsys, tmp_path, tiny_yaml, tiny_search_yaml):
    assert "tune" in error_line(capsys, tiny_yaml, "--out", tmp_path / "out")
    assert "tune.actors_per_trial" in error_line(capsys, tiny_search_yaml, "execution.kind=layers")


def test_an_invalid_search_is_found_without_torch_and_ray(python, tiny_search_yaml):
    code = "import sys; from glr_dist.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    found = set(python(code, "tune", tiny_search_yaml, "tune.trials=0").stdout.split())
    assert "pydantic" in found
    assert not {"torch", "ray", "optuna", "mlflow"} & found


def test_activations_without_a_derivative_are_those_that_no_gradient_passes():
    import torch

    def passes(name):
        x = torch.linspace(-2, 2, 9, requires_grad=True)
        y = ACTIVATIONS[name]()(x)
        return y.requires_grad and bool(torch.autograd.grad(y.sum(), x)[0].any())

    assert {name for name in ACTIVATIONS if not passes(name)} == set(search_config._NO_DERIVATIVE)


# ---------------------------------------------------------------- points


def test_a_point_sets_its_fields_in_a_copy():
    values = {"noise": {"scale": {"1": 0.5}}, "training": {"optimizer": {"name": "Adam", "lr": 0.1}}}
    before = json.dumps(values)
    point = {
        "noise.scale.1": 2.0,
        "noise.scale.3": 0.2,
        "training.optimizer.lr": 0.3,
        "model.hidden": [4, 4],
        "seed": 7,
    }
    found = with_point(values, point)
    assert found == {
        "noise": {"scale": {"1": 2.0, "3": 0.2}},
        "training": {"optimizer": {"name": "Adam", "lr": 0.3}},
        "model": {"hidden": [4, 4]},
        "seed": 7,
    }
    assert json.dumps(values) == before


def test_other_sites_keep_the_value_of_the_file_or_the_default():
    assert with_point({"noise": {"scale": 0.5}}, {"noise.scale.1": 2.0}) == {"noise": {"scale": {"1": 2.0, "*": 0.5}}}
    assert with_point({}, {"estimator.copies.1": 20}) == {"estimator": {"copies": {"1": 20, "*": 100}}}


def test_an_entry_of_the_schedule_is_a_field_and_a_schedule_is_a_value(tiny_search, tmp_path):
    search = tiny_search("noise.schedule={1: 0.5}", "tune.space={noise.schedule.1: {uniform: [0.1, 0.9]}}")
    assert search.config_at({"noise.schedule.1": 0.3}).noise.schedule == {1: 0.3}
    grid = ["tune.algorithm=grid", "tune.trials=null", "tune.space={noise.schedule: {grid: [{}, {1: 0.5}]}}"]
    search = tiny_search(*grid)
    for number, point in enumerate(grid_point(search.tune.space, number) for number in range(2)):
        TrialRecord(number=number, point=point, status="finished", metrics={"validation/accuracy": 0.5}).save(tmp_path)
    again = Study(search.tune, search.base.model_dump(mode="json"), read_records(tmp_path))
    assert [trial.state.name for trial in again.optuna.trials] == ["COMPLETE"] * 2


def test_a_searched_site_goes_before_the_patterns_of_the_file():
    found = with_point({"noise": {"scale": {"*": 0.5, "3": 1.0}}}, {"noise.scale.3": 2.0})
    assert list(found["noise"]["scale"].items()) == [("3", 2.0), ("*", 0.5)]


def test_the_base_configuration_is_a_point_if_the_space_contains_it(tiny_search):
    base = tiny_search().base.model_dump(mode="json")
    space = {"noise.scale": {"uniform": [0.1, 1]}, "training.optimizer.lr": {"choice": [0.02, 1]}}
    assert point_of(base, parse_space(space)) == {"noise.scale": 0.5, "training.optimizer.lr": 0.02}
    assert point_of(base, parse_space({"noise.scale.1": {"uniform": [0.1, 1]}})) == {"noise.scale.1": 0.5}
    assert point_of(base, parse_space({"noise.scale": {"uniform": [0.6, 1]}})) is None
    by_site = {"noise": {"scale": {"[12]": 0.7, "*": 0.2}}}
    assert point_of(by_site, parse_space({"noise.scale.1": {"uniform": [0.1, 1]}})) == {"noise.scale.1": 0.7}
    assert point_of(by_site, parse_space({"noise.scale.*": {"uniform": [0.1, 1]}})) == {"noise.scale.*": 0.2}


def test_ranges_may_be_nested_as_overrides_are_and_the_last_one_counts(tiny_search):
    found = tiny_search("tune.space.noise.scale={uniform: [1, 2]}").tune.space
    assert {field: allowed.described() for field, allowed in found.items()} == {"noise.scale": "uniform [1.0, 2.0]"}


def test_a_grid_is_every_combination(tiny_search):
    search = tiny_search(
        "tune.algorithm=grid",
        "tune.trials=null",
        "tune.space={noise.scale: {grid: [1, 2]}, noise.law: {grid: [gaussian, laplace, logistic]}}",
    )
    points = [grid_point(search.tune.space, number) for number in range(6)]
    assert search.tune.number == grid_size(search.tune.space) == 6
    assert points[:2] == [{"noise.scale": 1, "noise.law": law} for law in ("gaussian", "laplace")]
    assert {(point["noise.scale"], point["noise.law"]) for point in points} == {
        (scale, law) for scale in (1, 2) for law in ("gaussian", "laplace", "logistic")
    }


# ---------------------------------------------------------------- the same search


def test_a_search_is_resumed_unchanged_but_may_grow(tiny_search, tmp_path):
    stored = tmp_path / "tune.yaml"
    stored.write_text(tiny_search().dump())
    tiny_search("tune.trials=9", "tune.concurrent=2", "execution.threads=1").check_same(stored)
    for override, named in (
        ("noise.floor=0.01", "noise.floor: "),
        ("seed=1", "seed: "),
        ("tune.seed=1", "tune.seed: "),
        ("tune.objectives=validation/loss", "tune.objectives: "),
        ("tune.space={noise.scale: {uniform: [1, 2]}}", "tune.space: "),
    ):
        with pytest.raises(ConfigError, match=named):
            tiny_search(override).check_same(stored)


def test_a_population_is_resumed_at_its_size(tiny_search, tmp_path):
    stored = tmp_path / "tune.yaml"
    stored.write_text(tiny_search("tune.algorithm=pbt").dump())
    tiny_search("tune.algorithm=pbt", "tune.concurrent=2").check_same(stored)
    with pytest.raises(ConfigError, match=r"tune.trials: the search in .* has 4, not 9"):
        tiny_search("tune.algorithm=pbt", "tune.trials=9").check_same(stored)


@pytest.mark.parametrize("noise", ["learn=site", "schedule={1: 0.3}", "law=none"])
def test_a_population_needs_noise_without_a_schedule_of_its_own(tiny_search, noise):
    with pytest.raises(ConfigError, match=rf"noise\.{noise.partition('=')[0]}: .* cannot be used with 'pbt'"):
        tiny_search("tune.algorithm=pbt", f"noise.{noise}", "estimator={name: pathwise}", "model.activation=tanh")


def test_the_stored_search_has_its_tracking_section_without_credentials(tiny_search, tmp_path):
    stored = tmp_path / "tune.yaml"
    stored.write_text(tiny_search("tracking={kind: mlflow, uri: 'https://me:secret@host', experiment: x}").dump())
    assert "secret" not in stored.read_text()
    tracking = load_search(stored).base.tracking
    assert (tracking.kind, tracking.uri, tracking.experiment) == ("mlflow", "https://host", "x")
    assert "tracking" not in yaml.safe_load(tiny_search().dump())
    stored.write_text(tiny_search("tracking=none").dump())
    assert load_search(stored).base.tracking.kind == "none"
    tiny_search("tracking={kind: mlflow, uri: 'https://other'}").check_same(stored)


def test_the_configuration_at_a_point_is_one_that_train_takes(tiny_search, tmp_path):
    search = tiny_search("tune.space={noise.law: {choice: [laplace]}}")
    found = search.config_at({"noise.law": "laplace"})
    assert (found.noise.law, found.estimator.sampler) == ("laplace", "iid")  # resolved again
    (tmp_path / "best.yaml").write_text(dump_config(found))
    assert load_config(tmp_path / "best.yaml") == found
