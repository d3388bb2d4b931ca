"""The reproduction of the paper, on tiny networks: its table, its numbers, interruptions, one line per error."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from glr_dist import cli
from glr_dist.errors import ConfigError, UserError
from glr_dist.reproduction import recipe, training
from glr_dist.reproduction.plot import mean_curve, over_figure, tradeoff_figure
from glr_dist.reproduction.recipe import RECIPES, Plan, Recipe, planned_runs
from glr_dist.reproduction.reproduce import reproduce
from glr_dist.reproduction.results import ModelResult, SeedResult, at_clean, curve_point, same_input_noise, with_equal
from glr_dist.reproduction.sweep import Sweep, label, sweep_of
from glr_dist.reproduction.table import json_of, lines_of, reaches
from glr_dist.robustness.suite import SUITES, load_suite
from glr_dist.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = {
    "bp": "{model: {hidden: [8]}, noise: {law: none}, estimator: {name: pathwise}, %s}",
    "lrt": "{model: {hidden: [8], activation: threshold}, noise: {scale: 0.5}, estimator: {copies: 8}, %s}",
}
TRAINING = "training: {epochs: 3, batch_size: 512, optimizer: {name: Adam, lr: 0.02}}"
FEW = [
    "name=tiny",
    "attacks=[{name: fgsm, eps: 0.13, threats: [transfer]}]",
    "corruptions={names: [contrast], severities: [1, 3]}",
    "surrogate.training.epochs=1",
]


class Stopped(BaseException):
    """The end of the process, as far as the code under test can see."""


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    """Two models and two seeds on digits."""
    monkeypatch.setitem(RECIPES, "digits", Recipe({"paper": "paper"}, load_suite("quick", FEW)))
    (tmp_path / "configs" / "paper").mkdir(parents=True)
    for name, model in MODELS.items():
        (tmp_path / "configs" / "paper" / f"{name}.yaml").write_text(model % TRAINING)
    return Plan("digits", tmp_path / "configs", tmp_path / "out", seeds=2)


def files_of(plan: Plan) -> dict[str, int]:
    """Returns the times of the files that a run writes once."""
    found = [*plan.out.glob("runs/*/summary.json"), *plan.out.glob("runs/*/robustness/tiny-test.json")]
    return {str(path): path.stat().st_mtime_ns for path in found}


@pytest.mark.long
def test_all_models_and_seeds_become_a_table_json_and_a_plot(plan):
    text = reproduce(plan, actors=0)
    assert "mean ± standard deviation over 2 seeds" in text
    found = json.loads((plan.out / "table.json").read_text())
    assert [(model["model"], len(model["seeds"])) for model in found["models"]] == [("bp", 2), ("lrt", 2)]
    for model in found["models"]:
        for seed in model["seeds"]:
            folder = plan.out / "runs" / f"{model['model']}-seed{seed['seed']}"
            report = json.loads((folder / "robustness" / "tiny-test.json").read_text())
            assert seed["final"]["clean"] == report["clean"]["accuracy"]
            rates = [each["rate"]["accuracy"] for each in report["corruptions"]]
            assert seed["final"]["contrast"] == pytest.approx(sum(rates) / 2)
            assert [point["epoch"] for point in seed["curve"]] == [1, 2, 3]
            # The curve ends at the finished network, here on the same images.
            last = {name: value for name, value in seed["curve"][-1].items() if name != "epoch"}
            assert last == pytest.approx(seed["final"])
    assert (plan.out / "tradeoff.png").exists()
    assert (plan.out / "table.md").read_text() == f"{text}\n![](tradeoff.png)\n"
    before = files_of(plan)
    assert reproduce(plan, actors=0) == text
    assert files_of(plan) == before  # nothing is trained or evaluated again
    run = planned_runs(plan)[0]
    assert training.report_of_run(run, plan.suite) is not None
    summary = json.loads((run.folder / "summary.json").read_text())
    (run.folder / "summary.json").write_text(json.dumps({**summary, "params_sha256": "0f"}))
    assert training.report_of_run(run, plan.suite) is None  # the report is that of another network


@pytest.mark.long
def test_a_stopped_reproduction_continues(plan, tmp_path, monkeypatch):
    trained, step = Counter(), Trainer._run_epoch

    def counting(trainer, progress):
        trained[trainer.folder.path.name] += 1
        if sum(trained.values()) == 5:  # in the second run
            raise Stopped
        step(trainer, progress)

    monkeypatch.setattr(Trainer, "_run_epoch", counting)
    with pytest.raises(Stopped):
        reproduce(plan, actors=0)
    before = files_of(plan)
    assert len(before) == 2
    text = reproduce(plan, actors=0)
    assert {name: files_of(plan)[name] for name in before} == before
    # Each epoch was trained once, except the one that was stopped.
    assert sorted(trained.values()) == [3, 3, 3, 4]
    monkeypatch.setattr(Trainer, "_run_epoch", step)
    whole = Plan("digits", plan.configs, tmp_path / "whole", seeds=2)
    assert reproduce(whole, actors=0) == text


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_tasks_of_ray_give_the_same_table(plan, tmp_path):
    text = reproduce(plan, actors=2)
    assert reproduce(Plan("digits", plan.configs, tmp_path / "inline", seeds=2), actors=0) == text


@pytest.mark.long
def test_a_run_that_fails_does_not_end_the_others(plan):
    bad = MODELS["bp"].replace("hidden: [8]", "hidden: [8], activation: relu") % TRAINING.replace("0.02", "1.0e+30")
    (plan.configs / "paper" / "bp.yaml").write_text(bad)
    one = Plan("digits", plan.configs, plan.out, seeds=1)
    with pytest.raises(UserError, match=r"1 of 2 runs failed \(bp-seed0: .*not finite"):
        reproduce(one, actors=0)
    page = (plan.out / "table.md").read_text()
    assert "bp-seed0 failed:" in page
    assert "**lrt**" in page


@pytest.mark.long
def test_mlflow_has_the_runs_below_one_parent(plan, database):
    from mlflow import MlflowClient

    for path in (plan.configs / "paper").glob("*.yaml"):
        path.write_text(path.read_text()[:-1] + f", tracking: {{kind: mlflow, uri: '{database}', experiment: repro}}}}")
    reproduce(Plan("digits", plan.configs, plan.out, seeds=1), actors=0)
    client = MlflowClient(database)
    runs = client.search_runs([client.get_experiment_by_name("repro").experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert {run.info.run_name for run in runs if run is not parent} == {"digits/bp-seed0", "digits/lrt-seed0"}
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs if run is not parent} == {parent.info.run_id}
    found = json.loads((plan.out / "table.json").read_text())["models"][1]
    assert parent.data.metrics["lrt/fgsm_transfer"] == pytest.approx(found["mean"]["fgsm, transfer"])
    child = next(run for run in runs if run.info.run_name == "digits/lrt-seed0")
    name = "robust/curve-test/fgsm_transfer_eps_0.13"
    assert {point.step for point in client.get_metric_history(child.info.run_id, name)} == {1, 2, 3}


# ------------------------------------------------------------ numbers

CURVE = [
    {"epoch": 1, "clean": 0.5, "fgsm, transfer": 0.4},
    {"epoch": 2, "clean": 0.7, "fgsm, transfer": 0.2},
    {"epoch": 3, "clean": 0.6, "fgsm, transfer": 0.3},
]


@pytest.mark.parametrize(
    ("clean", "fgsm"), [(0.5, 0.4), (0.6, 0.3), (0.65, 0.25), (0.7, 0.2), (0.45, None), (0.75, None)]
)
def test_a_curve_is_read_where_it_first_passes_a_clean_accuracy(clean, fgsm):
    point = at_clean(CURVE, clean)
    assert point is None if fgsm is None else point == pytest.approx({"clean": clean, "fgsm, transfer": fgsm})


def test_a_record_becomes_a_point_of_the_curve():
    record = {
        "epoch": 4,
        "validation_accuracy": 0.99,
        "clean/curve-test/accuracy": 0.9,
        "robust/curve-test/fgsm_transfer_eps_0.1": 0.7,
        "robust/curve-test/fgsm_transfer_eps_0.13": 0.6,
        "robust/curve-test/torch_lbfgs_transfer": 0.8,
        "robust/curve-test/all_attacks_linf_eps_0.13": 0.5,
        "corruption/curve-test/glass_blur_s1": 0.5,
        "corruption/curve-test/glass_blur_s5": 0.25,
        "corruption/curve-test/mce": 1.5,
    }
    assert curve_point(record, 0.13) == {
        "epoch": 4,
        "clean": 0.9,
        "fgsm, transfer": 0.6,
        "torch_lbfgs, transfer": 0.8,
        "glass blur": 0.375,
    }
    assert curve_point({"epoch": 5, "validation_accuracy": 0.9}, 0.13) == {}


def models() -> list[ModelResult]:
    bp = SeedResult(0, "0a", {"clean": 0.7, "fgsm, transfer": 0.2}, CURVE)
    own = [
        SeedResult(
            seed, "0b", {"clean": clean, "fgsm, transfer": 0.35}, [{"epoch": 9, "clean": 0.6, "fgsm, transfer": 0.36}]
        )
        for seed, clean in ((0, 0.6), (1, 0.62))
    ]
    published = {"clean": 0.61, "fgsm, transfer": 0.37}
    bps = [bp, SeedResult(1, "0c", bp.final, CURVE)]
    return with_equal(
        [ModelResult("bp", "", "BP", True, None, {}, bps), ModelResult("lrs", "", "LRS", False, None, published, own)]
    )


def test_the_table_shows_what_was_published_and_backpropagation_at_equal_clean_accuracy(tmp_path):
    plan = Plan("mnist", CONFIGS, tmp_path, 2)
    lines = [" ".join(line.split()) for line in lines_of(plan, models(), {}, 0)]
    assert "| **bp** | 70.00 ± 0.00 | 20.00 ± 0.00 |" in lines
    assert "| **lrs** | 61.00 ± 1.41 ✓ | 35.00 ± 0.00 |" in lines  # the mean of 60 and 62; both s = 1.414 from it
    assert "| … published (LRS) | 61.00 | 37.00 |" in lines
    assert "| … BP at equal clean accuracy | 60.00 | 30.00 (+6.00) |" in lines
    (counts,) = (line for line in lines if line.startswith("Likelihood ratio"))
    assert counts == "Likelihood ratio: ✓ in 1 of 2 cells; within 2 points of the published figure in 2."
    assert reaches(models()[1], "clean")
    assert not reaches(models()[1], "fgsm, transfer")
    assert json_of(plan, models(), {})["models"][1]["mean"]["clean"] == pytest.approx(0.61)


def test_the_best_seed_on_validation_images_stands_beside_the_mean(tmp_path):
    bp, lrs = models()
    rated = [replace(seed, validation=value) for seed, value in zip(lrs.seeds, (0.58, 0.57), strict=True)]
    lrs = replace(lrs, seeds=rated, published={"clean": 0.58, "fgsm, transfer": 0.39})
    lines = [" ".join(line.split()) for line in lines_of(Plan("mnist", CONFIGS, tmp_path, 2), [bp, lrs], {}, 0)]
    assert "| … best of 2 seeds | 60.00 | 35.00 |" in lines  # the second has 62 on test images
    (counts,) = (line for line in lines if line.startswith("Likelihood ratio"))
    assert counts.endswith("within 2 points of the published figure in 0, with the best seeds in 1.")
    assert json_of(Plan("mnist", CONFIGS, tmp_path, 2), [lrs], {})["models"][0]["best"] == 0
    unrated = replace(lrs, seeds=[rated[0], replace(rated[1], validation=None)])
    assert (unrated.best, replace(lrs, seeds=rated[:1]).best) == (None, None)


def test_a_model_with_more_seeds_is_compared_over_those_of_backpropagation(tmp_path):
    bp, lrs = models()
    extra = replace(lrs.seeds[0], seed=2, final={"clean": 0.9}, curve=[{"epoch": 9, "clean": 0.9}], equal=None)
    found = with_equal([bp, replace(lrs, seeds=[*lrs.seeds, extra])])
    lines = [" ".join(line.split()) for line in lines_of(Plan("mnist", CONFIGS, tmp_path, 2), found, {}, 0)]
    assert "| … BP at equal clean accuracy | 60.00 | 30.00 (+6.00) |" in lines
    assert any("over seeds (bp: 2, lrs: 3)" in line for line in lines)


def test_a_mark_is_in_brackets_where_the_clean_accuracy_is_lower(tmp_path):
    bp, lrs = models()
    weak = replace(lrs, published={"clean": 0.63, "fgsm, transfer": 0.3})  # 2 points above the mean of 61
    for published, mark in ((weak.published, "✓"), ({**weak.published, "clean": 0.6301}, "(✓)")):
        lines = lines_of(Plan("mnist", CONFIGS, tmp_path, 2), [bp, replace(weak, published=published)], {}, 0)
        row = next(" ".join(line.split()) for line in lines if "**lrs**" in line)
        assert row == f"| **lrs** | 61.00 ± 1.41 | 35.00 ± 0.00 {mark} |"


def test_backpropagation_with_the_same_input_noise_stands_beside_a_model(tmp_path):
    bp, lrs = models()
    noise, other = {"scale": 0.3, "ramp": 0}, {"scale": 0.5, "ramp": 0}
    noisy_bp = replace(bp, model="bp_input", input_noise=noise)
    for own, row in ((noise, "| … BP with the same input noise | 70.00 (-9.00) | 20.00 (+15.00) |"), (other, None)):
        found = [bp, noisy_bp, replace(lrs, input_noise=own)]
        lines = [" ".join(line.split()) for line in lines_of(Plan("mnist", CONFIGS, tmp_path, 2), found, {}, 0)]
        assert [line for line in lines if line.startswith("| … BP with")] == ([row] if row else [])
        # The reference at equal clean accuracy is backpropagation without any noise.
        assert sum(line.startswith("| … BP at equal") for line in lines) == 2
    assert [model.reference for model in found] == [True, False, False]


def test_a_model_has_a_row_and_a_point_for_each_value_of_a_setting(tmp_path):
    _, lrs = models()
    found = [
        replace(
            lrs, value=value, seeds=[replace(seed, final={"clean": clean, "fgsm, transfer": 0.3}) for seed in lrs.seeds]
        )
        for value, clean in (("0.1", 0.9), ("0.5", 0.8))
    ]
    plan = Plan("mnist", CONFIGS, tmp_path, 2, over=sweep_of("noise.input.scale=[0.1, 0.5]"))
    lines = [" ".join(line.split()) for line in lines_of(plan, found, {}, 0)]
    assert "Each model with noise.input.scale = 0.1, 0.5." in lines
    assert "| **lrs 0.5** | 80.00 ± 0.00 ✓ | 30.00 ± 0.00 |" in lines
    axes = over_figure(found).axes[0]
    line = next(line for line in axes.lines if line.get_label() == "lrs")
    assert list(line.get_xdata()) == pytest.approx([90, 80])
    assert list(line.get_ydata()) == pytest.approx([30, 30])
    assert [text.get_text() for text in axes.texts] == ["0.1", "0.5", "LRS"]


def test_unfinished_runs_and_a_rehearsal_are_named(tmp_path):
    lines = list(lines_of(Plan("mnist", CONFIGS, tmp_path, 1, quick=True), models(), {"lrt-seed0": "lost"}, 3))
    assert any("not the reproduction" in line for line in lines)
    assert "**3 runs are not finished.**" in lines
    assert "lrt-seed0 failed: lost" in lines


def test_the_plot_has_the_mean_curve_of_each_model():
    shorter = CURVE[:2]
    assert mean_curve([CURVE, [{**point, "clean": point["clean"] + 0.1} for point in shorter]]) == [
        pytest.approx({"clean": 0.55, "fgsm, transfer": 0.4}),
        pytest.approx({"clean": 0.75, "fgsm, transfer": 0.2}),
    ]
    axes = tradeoff_figure(models()).axes[0]
    line = next(line for line in axes.lines if line.get_label() == "bp")
    assert list(line.get_xdata()) == pytest.approx([50, 70, 60])
    assert list(line.get_ydata()) == pytest.approx([40, 20, 30])
    assert [text.get_text() for text in axes.texts] == ["LRS"]


# ------------------------------------------------------------ plans


def test_the_repository_has_a_recipe_for_each_data_set(tmp_path):
    for name in ("mnist", "fashion_mnist", "tiny_imagenet"):
        runs = planned_runs(Plan(name, CONFIGS, tmp_path, 3))
        assert {run.config.data.name for run in runs} == {name}
        assert {run.model for run in runs} >= {"bp", "lrs", "lrt", "lrsz", "lrtz"}
        assert Counter(run.config.seed for run in runs) == {seed: len(runs) // 3 for seed in range(3)}
        assert len({run.folder for run in runs}) == len(runs)


def test_robust_models_are_trained_with_the_input_noise_of_a_backpropagated_one(tmp_path):
    for name in ("mnist", "fashion_mnist"):
        runs = planned_runs(Plan(name, CONFIGS, tmp_path, 1, models="robust"))
        by_model = {run.model: run.config for run in runs}
        assert by_model["bp"].noise.input is None
        noise = {model: (config.noise.input, config.training.epochs) for model, config in by_model.items()}
        for model in ("lrs", "lrt", "lrsz", "lrtz"):
            assert noise[model][0] is not None
            assert noise[model] in [noise[each] for each in noise if each.startswith("bp")]
    with pytest.raises(ConfigError, match="--models: 'robust' is not available for tiny_imagenet; known are paper"):
        planned_runs(Plan("tiny_imagenet", CONFIGS, tmp_path, 1, models="robust"))


def test_each_model_is_trained_with_each_value_of_a_setting(plan):
    values = "noise.input=[null, {scale: 0.5, ramp: 2}]"
    runs = planned_runs(replace(plan, over=sweep_of(values)))
    assert len(runs) == 8
    names = {run.folder.name: run.config.noise.input for run in runs if run.model == "lrt" and run.config.seed == 1}
    assert {name: noise and noise.model_dump() for name, noise in names.items()} == {
        "lrt-null-seed1": None,
        "lrt-scale-0.5-ramp-2-seed1": {"scale": 0.5, "ramp": 2},
    }


def test_a_model_has_a_number_of_seeds_of_its_own(plan):
    runs = planned_runs(replace(plan, seeds=1, seeds_of={"lrt": 3}))
    assert [(run.model, run.config.seed) for run in runs] == [("lrt", 0), ("bp", 0), ("lrt", 1), ("lrt", 2)]
    with pytest.raises(ConfigError, match="--seeds-of: 'lrd' is not one of the models; did you mean 'lrt'"):
        planned_runs(replace(plan, seeds_of={"lrd": 3}))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (-0.5, "-0.5"), (None, "null"), ({"scale": 0.5, "ramp": 2}, "scale-0.5-ramp-2"), ([], "empty")],
)
def test_a_value_has_a_name_that_a_folder_can_have(value, text):
    assert label(value) == text


def test_a_sweep_is_the_same_however_it_is_spaced():
    assert sweep_of(" noise.scale = [1, -1] ") == sweep_of("noise.scale=[1,-1]") == Sweep("noise.scale", (1, -1))


def test_a_model_is_compared_with_backpropagation_of_its_value():
    """Backpropagation without that value, to which it makes no difference, counts for all values."""
    bp, lrs = models()
    slow = [[{**point, "fgsm, transfer": 0.1 * point["epoch"]} for point in seed.curve] for seed in bp.seeds]
    other = [replace(seed, curve=curve) for seed, curve in zip(bp.seeds, slow, strict=True)]
    found = with_equal([replace(bp, value="1"), replace(bp, value="2", seeds=other), replace(lrs, value="2")])
    assert found[2].seeds[0].equal["fgsm, transfer"] == pytest.approx(0.15)  # halfway between the first two epochs
    found = with_equal([replace(bp, value="1"), replace(lrs, value="2")])
    assert found[1].seeds[0].equal["fgsm, transfer"] == pytest.approx(0.3)
    noise = {"scale": 0.3, "ramp": 0}
    bps = [replace(bp, value=value, input_noise=noise) for value in "12"]
    assert same_input_noise(replace(lrs, value="2", input_noise=noise), bps) is bps[1]
    assert same_input_noise(replace(lrs, value="3", input_noise=noise), bps) is bps[0]


def test_models_that_a_value_makes_the_same_are_trained_once(plan):
    noisy = MODELS["bp"].replace("law: none", "law: none, input: {scale: 0.3}")
    (plan.configs / "paper" / "bp_input.yaml").write_text(noisy % TRAINING)
    (run,) = (r for r in planned_runs(replace(plan, seeds=1, over=sweep_of("noise.scale=[1, 2]"))) if r.model == "bp")
    assert run.folder.name == "bp-1-seed0"  # it has no such noise
    names = {run.folder.name for run in planned_runs(replace(plan, over=sweep_of("noise.input=[null, {scale: 0.5}]")))}
    assert names == {f"{m}-{v}-seed{n}" for m in ("bp", "lrt") for v in ("null", "scale-0.5") for n in (0, 1)}


@pytest.mark.long
def test_a_reproduction_over_a_setting_continues_and_keeps_its_values(plan):
    over = replace(plan, seeds=1, over=sweep_of("noise.input.scale=[0.1, 0.4]"))
    text = reproduce(over, actors=0)
    before = files_of(plan)
    assert reproduce(over, actors=0) == text
    assert files_of(plan) == before
    found = json.loads((plan.out / "table.json").read_text())
    assert found["over"] == {"setting": "noise.input.scale", "values": [0.1, 0.4]}
    assert [(model["model"], model["value"]) for model in found["models"]] == [
        ("bp", "0.1"), ("bp", "0.4"), ("lrt", "0.1"), ("lrt", "0.4")
    ]  # fmt: skip
    assert (plan.out / "tradeoff.png").exists()
    with pytest.raises(ConfigError, match="'over' differs"):
        reproduce(plan, actors=0)


def test_a_rehearsal_trains_a_tenth_of_the_epochs_and_evaluates_few_images(tmp_path):
    whole = {run.model: run.config for run in planned_runs(Plan("mnist", CONFIGS, tmp_path, 1))}
    quick = {run.model: run.config for run in planned_runs(Plan("mnist", CONFIGS, tmp_path, 1, quick=True))}
    epochs = {name: (whole[name].training.epochs, quick[name].training.epochs) for name in ("bp", "lrs", "lrtz")}
    assert epochs == {"bp": (100, 10), "lrs": (10, 2), "lrtz": (20, 2)}
    assert quick["bp"].robustness.at_end["examples"] == recipe.QUICK_IMAGES
    assert whole["bp"].robustness.at_end == SUITES["reproduce"].model_dump(mode="json")


WRONG = {
    "no data set": ([], ["DATASET: is missing", "mnist"]),
    "an unknown data set": (["mnits"], ["'mnits' is unknown", "'mnist'"]),
    "one twice": (["mnist", "mnist"], ["'mnist' is given twice"]),
    "no configurations": (["mnist", "--configs", "/nowhere"], ["--configs: /nowhere/paper holds no", "checkout"]),
    "unknown models": (["mnist", "--models", "robst"], ["--models: 'robst' is not available", "did you mean 'robust'"]),
    "models of other data": (["tiny_imagenet", "--models", "robust"], ["'robust' is not available for tiny_imagenet"]),
    "no values": (["mnist", "--over", "noise.scale=0.3"], ["--over: 'noise.scale=0.3'", "SETTING=[VALUE, VALUE, …]"]),
    "no setting": (["mnist", "--over", "[1, 2]"], ["--over: '[1, 2]'", "SETTING=[VALUE, VALUE, …]"]),
    "a value twice": (["mnist", "--over", "noise.scale=[1, 1]"], ["--over:", "two values have the name 1"]),
    "what a reproduction sets": (["mnist", "--over", "seed=[1, 2]"], ["--over: seed is not allowed", "sets it itself"]),
    "a part of it": (["mnist", "--over", "execution.threads=[1, 2]"], ["--over: execution.threads is not allowed"]),
    "no YAML": (["mnist", "--over", "noise.scale=[1, 2"], ["--over: '[1, 2' is not a YAML value"]),
    "a model without it": (["mnist", "--over", "estimator.copies=[2, 4]"], ["bp.yaml: ", "estimator.copies"]),
    "an impossible value": (["mnist", "--over", "noise.scale=[1, -1]"], ["noise.scale", "-1"]),
    "an unknown setting": (["mnist", "--over", "noise.scal=[1, 2]"], ["noise.scal", "did you mean 'scale'"]),
    "no seeds": (["mnist", "--seeds", "0"], ["--seeds", "'0'"]),
    "no number of seeds": (["mnist", "--seeds-of", "lrtz"], ["--seeds-of: 'lrtz' is not allowed", "lrtz=10"]),
    "no seeds of a model": (["mnist", "--seeds-of", "lrtz=0"], ["--seeds-of: 'lrtz=0' is not allowed"]),
    "seeds of a model twice": (
        ["mnist", "--seeds-of", "lrtz=9", "--seeds-of", "lrtz=8"],
        ["--seeds-of: 'lrtz' is given twice"],
    ),
    "seeds of another model": (["mnist", "--seeds-of", "lrtx=9"], ["'lrtx' is not one of", "did you mean 'lrt"]),
    "GPUs": (["mnist", "--gpus-per-run", "2"], ["--gpus-per-run: 2 is not allowed"]),
    "GPUs without actors": (["mnist", "--gpus-per-run", "1", "--actors", "0"], ["--gpus-per-run: has no effect"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_an_error_is_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(CONFIGS.parent)
    try:
        assert cli.main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    except SystemExit as error:
        assert error.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(plan, monkeypatch):
    monkeypatch.setattr("glr_dist.reproduction.reproduce.train_runs", lambda *_: pytest.fail("trains"))
    plan.out.mkdir()
    (plan.out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="does not hold a reproduction"):
        reproduce(plan, actors=0)
    (plan.out / "notes.txt").unlink()
    monkeypatch.setattr("glr_dist.reproduction.reproduce._train_surrogate", lambda *_: None)
    monkeypatch.setattr("glr_dist.reproduction.reproduce.train_runs", lambda *_: ())
    reproduce(plan, actors=0)
    with pytest.raises(ConfigError, match="holds another reproduction \\('quick' differs\\); --quick"):
        reproduce(Plan("digits", plan.configs, plan.out, 1, quick=True), actors=0)
    (plan.out / "reproduction.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        reproduce(plan, actors=0)
