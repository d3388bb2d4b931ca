"""Robustness while a run trains: its metrics, that the training does not notice it, and interruptions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from glr_dist import cli, tracking
from glr_dist.config import build
from glr_dist.errors import ConfigError
from glr_dist.robustness import evaluate as evaluation
from glr_dist.robustness import measure as measuring
from glr_dist.robustness.evaluate import evaluate
from glr_dist.robustness.metric_names import report_metrics
from glr_dist.robustness.suite import Suite, load_suite
from glr_dist.robustness.training_settings import training_settings
from glr_dist.training.robustness_curve import robustness_curve_figure
from glr_dist.training.train import train, trainer_of
from glr_dist.training.trainer import Trainer

pytestmark = pytest.mark.slow

# Without a surrogate, which would have to be trained.
SUITE = (
    "{name: few, examples: 60, block: 20, attacks: [{name: random_sign, eps: [0.1, 0.2]}], corruptions: {names: []}}"
)
EVERY_2 = (f"robustness={{every: 2, suite: {SUITE}}}", "training.epochs=5")
CLOCK = ("seconds", "time", "copies_per_second", "robustness_seconds")
CONTROL = "robust/few-validation/random_sign_control_eps_0.1"


class Stopped(BaseException):
    """The end of the process, as far as the code under test can see."""


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def lasting(out: Path) -> list[dict]:
    """Returns the metrics that do not depend on the clock."""
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records(out)]


def evaluated(out: Path) -> list[int]:
    return [record["epoch"] for record in records(out) if CONTROL in record]


@pytest.mark.parametrize("more", [[], ["training.ema=0.9", "noise.learn=unit", "model.dropout=0.2"]])
def test_the_training_does_not_notice_it(tiny, tmp_path, more):
    plain = train(tiny("training.epochs=5", *more), tmp_path / "plain")
    watched = train(tiny(*EVERY_2, *more), tmp_path / "watched")
    assert watched["params_sha256"] == plain["params_sha256"]
    assert evaluated(tmp_path / "watched") == [2, 4, 5]  # every second epoch, and the last one
    kept = records(tmp_path / "plain")[0].keys()
    alike = [{key: record[key] for key in record.keys() & kept} for record in lasting(tmp_path / "watched")]
    assert alike == lasting(tmp_path / "plain")
    # It is what the command says of the finished network.
    suite = load_suite("quick").model_validate(load_of(EVERY_2[0]))
    (report,) = evaluate([tmp_path / "watched"], suite, actors=0)
    last = records(tmp_path / "watched")[-1]
    assert {name: last[name] for name in report_metrics(report)} == report_metrics(report)


def load_of(override: str) -> dict:
    from glr_dist.config import overridden

    section = overridden({}, [override])["robustness"]
    return {**section["suite"], "split": section.get("split", "validation")}


def test_attacks_corruptions_and_certificates_have_the_names_of_mlflow(tiny, tmp_path):
    given = "attacks: [{name: fgsm, threats: [transfer]}], surrogate: {training: {epochs: 1}}"
    suite = f"{{name: mine, {given}, corruptions: {{names: [contrast], severities: [3]}}}}"
    certify = "certify: {examples: 6, n: 50, radii: [0.1, 0.2]}"
    config = tiny(f"robustness={{every: 3, suite: {suite}, split: test, examples: 30, {certify}}}")
    train(config, tmp_path / "out")
    *_, last = records(tmp_path / "out")
    names = {
        "clean/mine-test/accuracy",
        "robust/mine-test/fgsm_transfer_eps_0.1",
        "robust/mine-test/all_attacks_linf_eps_0.1",
        "corruption/mine-test/contrast_s3",
        "corruption/mine-test/mce",
        "certified/l2/clean",
        "certified/l2/average_radius",
        "certified/l2/r_0.1",
        "certified/l2/r_0.2",
    }
    assert names == {
        name for name in last if "/" in name and name.partition("/")[0] not in ("gradient_norm", "noise_scale")
    }
    assert names == set(training_settings(config.robustness).metrics())
    assert not list((tmp_path / "out").glob(".robustness-*"))
    # n = 50 draws with p = 1: the bound of the probability is 0.001^(1/50).
    assert 0 <= last["certified/l2/r_0.2"] <= last["certified/l2/r_0.1"] <= last["certified/l2/clean"]


def test_adversarial_images_of_another_network_are_made_once(tiny, tmp_path, monkeypatch):
    made = Counter()
    changed = measuring._changed

    def counting(condition, *rest):
        made[condition.label] += 1
        return changed(condition, *rest)

    monkeypatch.setattr(measuring, "_changed", counting)
    attacks = "[{name: torch_lbfgs, iterations: 3}, {name: fgsm, threats: [transfer]}]"
    given = f"name: few, examples: 30, block: 20, attacks: {attacks}, surrogate: {{training: {{epochs: 1}}}}"
    suite = f"{{{given}, corruptions: {{names: []}}}}"
    train(tiny(f"robustness={{every: 1, suite: {suite}}}"), tmp_path / "out")
    assert made["torch_lbfgs/transfer"] == 2  # blocks
    assert made["fgsm/transfer/eps_0.1"] == 2 * 3  # after each of three epochs: it takes no time
    same = build(Suite, {**yaml.safe_load(suite), "split": "validation"})
    (report,) = evaluate([tmp_path / "out"], same, actors=0)
    name = "robust/few-validation/torch_lbfgs_transfer"
    assert records(tmp_path / "out")[-1][name] == report_metrics(report)[name]


def test_l_infinity_certificates_too(tiny, tmp_path):
    certify = "certify: {norm: linf, examples: 6, eps: [0.01], steps: 2}"
    train(tiny(f"robustness={{every: 3, suite: {SUITE}, {certify}}}"), tmp_path / "out")
    last = records(tmp_path / "out")[-1]
    assert last["certified/linf-validation/eps_0.01"] <= last["certified/linf-validation/clean"]


@pytest.mark.parametrize("block", [0, 4, 8])
def test_an_evaluation_that_was_cut_off_is_completed(tiny, tmp_path, monkeypatch, block):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tiny(*EVERY_2), whole)
    left, measured, measure = block, Counter(), evaluation.measurements

    def stopping(subjects, *rest, **options):
        nonlocal left
        for work, found in measure(subjects, *rest, **options):
            if subjects[0].epoch == 4 and left == 0:
                raise Stopped
            left -= subjects[0].epoch == 4
            measured[subjects[0].epoch] += 1
            yield work, found

    monkeypatch.setattr(evaluation, "measurements", stopping)
    with pytest.raises(Stopped):
        train(tiny(*EVERY_2), cut)
    assert evaluated(cut) == [2]
    left = -1
    train(tiny(*EVERY_2), cut, resume=True)
    assert lasting(cut) == lasting(whole)
    assert measured == {2: 9, 4: 9, 5: 9}  # three conditions of three blocks: none is missing, none is made twice


def test_it_may_be_changed_when_a_run_is_resumed(tiny, tmp_path):
    train(tiny("training.epochs=2"), tmp_path / "out")
    train(tiny(*EVERY_2), tmp_path / "out", resume=True)
    assert evaluated(tmp_path / "out") == [4, 5]


def test_a_run_that_stops_early_is_evaluated_after_its_last_epoch(tiny, tmp_path):
    train(tiny(f"robustness={{every: 100, suite: {SUITE}}}", "training={epochs: 50, max_steps: 7}"), tmp_path / "out")
    assert evaluated(tmp_path / "out") == [records(tmp_path / "out")[-1]["epoch"]] == [1]


def test_the_finished_run_is_evaluated_once(tiny, tmp_path, monkeypatch):
    config = tiny(f"robustness.at_end={SUITE}", "training.epochs=1")
    train(config, tmp_path / "out")
    report = tmp_path / "out" / "robustness" / "few-test.json"
    before = report.stat().st_mtime_ns
    assert json.loads(report.read_text())["epoch"] == 1
    train(config, tmp_path / "out", resume=True)
    assert report.stat().st_mtime_ns == before
    train(tiny(f"robustness.at_end={SUITE}", "training.epochs=2"), tmp_path / "out", resume=True)
    assert json.loads(report.read_text())["epoch"] == 2  # of another network now


def test_another_report_of_that_name_is_found_before_the_training(tiny, tmp_path):
    train(tiny(f"robustness.at_end={SUITE}", "training.epochs=1"), tmp_path / "out")
    other = SUITE.replace("60", "50")
    with pytest.raises(ConfigError, match="holds another suite 'few' \\('examples' is 60, not 50\\)"):
        Trainer(tiny(f"robustness.at_end={other}", "training.epochs=2"), tmp_path / "out", resume=True)


def test_a_suite_in_a_file_is_kept_by_the_run(tiny_yaml, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(SUITE.replace("name: few, ", ""))
    out = tmp_path / "out"
    command = ["train", str(tiny_yaml), f"robustness={{every: 2, suite: {tmp_path}/mine.yaml}}", "--out", str(out)]
    assert cli.main(command) == 0
    (tmp_path / "mine.yaml").unlink()
    assert cli.main(["train", "--resume", "--out", str(out), "training.epochs=4"]) == 0
    named = CONTROL.replace("few", "mine")
    assert [record["epoch"] for record in records(out) if named in record] == [2, 3, 4]


def test_other_inputs_than_images_are_left_out_and_the_run_says_so(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("a,b,y\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(80)))
    config = tmp_path / "table.yaml"
    config.write_text(
        "{data: {name: table, path: table.csv, target: y}, model: {hidden: [4]}, estimator: {copies: 4},"
        " training: {epochs: 2}, execution: {device: cpu}, robustness: {every: 1, at_end: quick}}"
    )
    assert cli.main(["train", str(config), "--out", str(tmp_path / "out")]) == 0
    assert "robustness is not evaluated: attacks, corruptions and certificates need images" in capsys.readouterr().out
    assert not any(name.startswith(("robust", "clean")) for record in records(tmp_path / "out") for name in record)


WRONG = {
    "every": ("robustness.every=0", ["robustness.every: 0 is not allowed"]),
    "a suite": ("robustness={every: 1, suite: papr}", ["robustness.suite: 'papr' is neither a suite", "paper, quick"]),
    "a file": ("robustness={every: 1, suite: missing.yaml}", ["missing.yaml", "No such file"]),
    "a suite's field": ("robustness={every: 1, suite: {blok: 3}}", ["robustness.suite.blok: unknown key", "'block'"]),
    "an ε": (
        "robustness={at_end: {attacks: [{name: fgsm, eps: -1}]}}",
        ["robustness.at_end.attacks.0.eps.0: -1 is not allowed"],
    ),
    "a split": ("robustness={every: 1, split: train}", ["robustness.split: 'train'", "'validation' or 'test'"]),
    "no interval": ("robustness.split=test", ["robustness.split: has no effect without robustness.every"]),
    "certificates": ("robustness={every: 1, certify: {n: 0}}", ["robustness.certify.n: 0 is not allowed"]),
    "a norm": ("robustness={every: 1, certify: {norm: l1}}", ["robustness.certify.norm: 'l1'", "'l2' or 'linf'"]),
    "a setting of the other norm": (
        "robustness={every: 1, certify: {norm: linf, passes: 4}}",
        ["robustness.certify.passes: has no effect", "linf"],
    ),
    "a split of certificates": (
        "robustness={every: 1, certify: {split: test}}",
        ["robustness.certify.split", "robustness.split"],
    ),
    "a condition twice": (
        "robustness={every: 1, suite: {attacks: [{name: random_sign}, {name: random_sign}]}}",
        ["'random_sign/control/eps_0.1' occurs twice"],
    ),
}


@pytest.mark.parametrize(("override", "words"), WRONG.values(), ids=WRONG)
def test_an_error_is_one_line(tiny_yaml, tmp_path, capsys, override, words):
    assert cli.main(["train", str(tiny_yaml), override, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


UNFIT = {
    "votes without noise": (
        ["estimator={name: pathwise}", "model.activation=sigmoid", "noise={law: none}"],
        "{every: 1, suite: {inference: {votes: 3}}}",
        "robustness.suite.inference.votes: 3 is not allowed: the run has no noise",
    ),
    "passes without noise": (
        ["estimator={name: pathwise}", "model.activation=sigmoid", "noise={law: none, input: {scale: 0.3}}"],
        "{every: 1, certify: {passes: 4}}",
        "robustness.certify.passes: 4 is not allowed: the network has no noise of its own",
    ),
    "no Gaussian noise": (["noise.law=laplace"], "{every: 1, certify: {}}", "laplace"),
}


@pytest.mark.parametrize(("overrides", "section", "words"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_measured_is_found_before_the_training(tiny_yaml, tmp_path, capsys, overrides, section, words):
    command = ["train", str(tiny_yaml), *overrides, f"robustness={section}", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


def test_the_picture_has_a_panel_for_each_strength(tiny):
    history = [
        {
            "epoch": epoch,
            "clean/s-validation/accuracy": 0.9,
            "robust/s-validation/fgsm_transfer_eps_0.1": 0.5,
            "robust/s-validation/fgsm_transfer_eps_0.2": 0.25,
            "robust/s-validation/torch_lbfgs_transfer": 0.75,
            "corruption/s-validation/fog_s1": 0.5,
            "corruption/s-validation/fog_s3": 1.0,
            "corruption/s-validation/mce": 1.25,
            "certified/l2-validation/r_0.5": 0.125,
        }
        for epoch in (5, 10)
    ]
    figure = robustness_curve_figure([{"epoch": 1}, *history])
    drawn = {axes.get_title(): [line.get_ydata()[0] for line in axes.lines] for axes in figure.axes if axes.lines}
    assert drawn == {
        "attacks, ε = 0.1": [0.9, 0.5],
        "attacks, ε = 0.2": [0.9, 0.25],
        "attacks without ε": [0.9, 0.75],
        "corruptions, mean of severities": [0.9, 0.75],
        "certified, l2-validation": [0.9, 0.125],
    }
    assert all(list(axes.lines[0].get_xdata()) == [5, 10] for axes in figure.axes if axes.lines)


def test_mlflow_has_the_curves(tiny, database, tmp_path):
    from mlflow import MlflowClient

    from glr_dist.tracking.state import State

    config, out = tiny(*EVERY_2, f"tracking={{kind: mlflow, uri: '{database}'}}"), tmp_path / "out"
    trainer = Trainer(config, out)
    with tracking.tracked(config, out):
        trainer.run()
    client, run_id = MlflowClient(database), State.read(out).run_id
    curve = {point.step: point.value for point in client.get_metric_history(run_id, CONTROL)}
    assert curve == {record["epoch"]: record[CONTROL] for record in records(out) if CONTROL in record}
    assert set(curve) == {2, 4, 5}
    assert "robustness_curve.png" in {artifact.path for artifact in client.list_artifacts(run_id)}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("kind", ["layers", "replicas"])
def test_actors_and_replicas_give_the_same_evaluations(tiny, tmp_path, kind):
    more = ["estimator.example_block=128", f"robustness.at_end={SUITE}"]
    train(tiny(*EVERY_2, *more), tmp_path / "inline")
    trainer = trainer_of(tiny(*EVERY_2, *more, f"execution={{kind: {kind}, actors: 2}}"), tmp_path / kind)
    assert trainer.evaluator is not None
    trainer.evaluator.actors = 0
    trainer.run()
    assert evaluated(tmp_path / kind) == [2, 4, 5]
    assert (tmp_path / kind / "robustness" / "few-test.json").exists()
    one, two = (
        [record[CONTROL] for record in records(tmp_path / name) if CONTROL in record] for name in ("inline", kind)
    )
    # Replicas add gradients in another order, which may change the class of an image near a boundary.
    assert one == two if kind == "layers" else one == pytest.approx(two, abs=0.05)
