"""Searches on Ray: their results, and that no computed trial is lost or repeated."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mlflow import MlflowClient

from glr_dist.config import load_config
from glr_dist.errors import ClusterError, ConfigError
from glr_dist.robustness.report_files import read_report
from glr_dist.training.train import train
from glr_dist.tuning.ranking import best_trial
from glr_dist.tuning.search import tune
from glr_dist.tuning.table import trial_table
from glr_dist.tuning.trial_record import TrialRecord, read_records, trial_folder
from glr_dist.tuning.trial_runner import Interval, TrialRunner

TIMEOUT = 120  # seconds after which a process counts as hanging
CONTROL = "robust/control/random_sign/eps_0.1/accuracy"
ROBUST = [
    f"tune.objectives=[validation/accuracy, {CONTROL}]",
    "tune.robustness={examples: 50, attacks: [{name: random_sign}]}",
]


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> str:
    """Address of the tests' Ray cluster with four logical CPUs, which searches in this and other processes join."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def trained(out, number):
    """Returns the files that a trial writes only once: its metrics and summary, with its times."""
    folder = trial_folder(out, number)
    return [(folder / name).read_text() for name in ("metrics.jsonl", "summary.json")]


def trial_name(record):
    return f"{record.number}: training.optimizer.lr={record.point['training.optimizer.lr']:.4g}"


def digest(out):
    return json.loads((out / "summary.json").read_text())["params_sha256"]


@pytest.mark.usefixtures("pictures")
@pytest.mark.ray
def test_concurrent_trials_give_a_table_a_configuration_and_plots(cluster, tiny_search, tmp_path, capsys):
    search, out = tiny_search("tune.concurrent=2", *ROBUST), tmp_path / "out"
    printed = tune(search, out)
    records = read_records(out)
    assert [record.status for record in records] == ["finished"] * 4
    assert all(record.metrics.keys() >= {"validation/accuracy", CONTROL} for record in records)
    assert records[0].point == {"noise.scale": 0.5}
    rows = json.loads((out / "trials.json").read_text())["trials"]
    assert {row["number"] for row in rows} == {0, 1, 2, 3}
    accuracies = [row["metrics"]["validation/accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert any(row["pareto"] for row in rows)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 4  # Ray Tune prints nothing
    assert "cannot be drawn" not in captured.err
    assert re.search(r"\(4 of 4; best 0\.\d{4}, trial \d\)$", lines[-1])
    assert printed.count("finished") == 4
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((out / "pareto.yaml").read_text())[0]["trial"] == rows[0]["number"]
    assert not (out / ".tune").exists()

    # The best configuration repeats the best trial, which was chosen on the validation images.
    best = trial_folder(out, rows[0]["number"])
    assert train(load_config(out / "best.yaml"), tmp_path / "best")["params_sha256"] == digest(best)
    assert read_report(best, "tune-validation").suite.split == "validation"


@pytest.mark.long
@pytest.mark.ray
def test_a_trial_with_actors_of_its_own_gives_the_same_bits(cluster, tiny_search, tmp_path):
    search = tiny_search("tune.trials=1", "tune.actors_per_trial=2")
    tune(search, tmp_path / "out")  # the trial itself takes no CPU
    assert train(search.base, tmp_path / "inline")["params_sha256"] == digest(trial_folder(tmp_path / "out", 0))


@pytest.mark.ray
def test_a_trial_without_room_is_a_one_line_error(cluster, tiny_search, tmp_path):
    with pytest.raises(ClusterError, match=r"tune.actors_per_trial: no room for a trial of 5 x 1 CPU.* has 4 CPU"):
        tune(tiny_search("tune.actors_per_trial=5", "execution.placement_timeout=0.1"), tmp_path / "out")


def start_search(start, address, path, out, *overrides):
    """Starts a search in another process, which joins the cluster."""
    environment = {**os.environ, "RAY_ADDRESS": address}
    return start("tune", path, "--out", out, *overrides, env=environment, stderr=subprocess.PIPE)


def wait_until(condition, process):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.ray
def test_a_search_whose_driver_was_killed_continues_and_repeats_no_finished_trial(
    cluster, start, tiny_search, tiny_search_yaml, tmp_path
):
    out, number, epochs = tmp_path / "out", 3, 20
    overrides = [f"tune.trials={number}", f"training.epochs={epochs}", "tune.concurrent=1"]
    process = start_search(start, cluster, tiny_search_yaml, out, *overrides)
    wait_until(lambda: any(record.status == "finished" for record in read_records(out)), process)
    process.kill()
    process.communicate(timeout=TIMEOUT)
    snapshots = [path.read_bytes() for path in (out / ".tune").rglob("*") if path.is_file()]
    assert snapshots
    assert not any(b"estimator" in content for content in snapshots)  # no configuration, hence no password
    done = {record.number: trained(out, record.number) for record in read_records(out) if record.status == "finished"}
    assert 0 < len(done) < number

    search = tiny_search(*overrides)
    printed = tune(search, out, resume=True)
    records = read_records(out)
    assert [record.status for record in records] == ["finished"] * number
    assert printed.count("finished") == number
    assert len(json.loads((out / "trials.json").read_text())["trials"]) == number
    for before, content in done.items():
        assert trained(out, before) == content
    for record in records:  # an interrupted trial was continued, by one process at a time
        lines = (trial_folder(out, record.number) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, epochs + 1))
    kept = [trained(out, record.number) for record in records]
    assert tune(search, out, resume=True) == printed  # nothing is left to run
    assert [trained(out, record.number) for record in records] == kept


@pytest.mark.ray
def test_ctrl_c_says_how_to_continue(cluster, start, tiny_search_yaml, tmp_path):
    out = tmp_path / "out"
    process = start_search(start, cluster, tiny_search_yaml, out, "training.epochs=100000")
    wait_until(lambda: read_records(out), process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert output.startswith(f"results              {out}\n")
    assert errors == f"stopped with 0 of 4 trials done; continue with --resume --out {out}\n"


WHILE = "robust/few-validation/random_sign_control_eps_0.1"
WHILE_TRAINING = [
    f"tune.objectives={WHILE}",
    "training.epochs=4",
    "robustness={every: 2, suite: {name: few, examples: 40, attacks: [{name: random_sign}], corruptions: {names: []}}}",
]


@pytest.mark.long
@pytest.mark.ray
def test_asha_follows_a_metric_of_robustness(cluster, tiny_search, tmp_path):
    """Trials that learn nothing are stopped after the first evaluation, in epoch 2."""
    rates = "tune.space={training.optimizer.lr: {choice: [0.02, 1.0e-9]}}"
    overrides = ["tune.scheduler=asha", "tune.algorithm=random", "tune.concurrent=1", "tune.trials=4", rates]
    tune(tiny_search(*WHILE_TRAINING, *overrides), tmp_path / "out")
    records = read_records(tmp_path / "out")
    assert records[0].status == "finished"
    assert records[0].epochs == 4
    bad = [record for record in records if record.point["training.optimizer.lr"] < 0.01]
    assert bad
    for record in bad:
        assert (record.status, record.epochs) == ("stopped", 2)
        assert record.metrics[WHILE] < records[0].metrics[WHILE]
    assert best_trial(records, [WHILE]).status == "finished"


@pytest.mark.long
@pytest.mark.ray
def test_asha_stops_trials_that_fall_behind_and_trials_are_nested_in_mlflow(cluster, tiny_search, tmp_path):
    overrides = ["tune.scheduler=asha", "tune.algorithm=random", "tune.concurrent=1", "training.epochs=4"]
    rates = "tune.space={training.optimizer.lr: {choice: [0.02, 1.0e-9]}}"
    uri, out = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "out"
    tune(tiny_search(*overrides, rates, "tune.trials=4", f"tracking={{kind: mlflow, uri: '{uri}'}}"), out)
    records = read_records(out)
    assert records[0].status == "finished"
    bad = [record for record in records if record.point["training.optimizer.lr"] < 0.01]
    assert bad
    for record in bad:
        assert record.status == "stopped"
        assert record.epochs == 1 == len((trial_folder(out, record.number) / "metrics.jsonl").read_text().splitlines())
        assert record.metrics["validation/accuracy"] < records[0].metrics["validation/accuracy"]

    client = MlflowClient(uri)
    runs = {
        run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("glr_dist").experiment_id])
    }
    parent = runs.pop("out")
    assert (parent.info.status, parent.data.tags["stopped_early"]) == ("FINISHED", "false")
    best = json.loads((out / "trials.json").read_text())["trials"][0]
    assert parent.data.metrics == best["metrics"]
    known = {"tune.space.training.optimizer.lr": "choice [0.02, 1e-09]", "tune.scheduler": "asha", "noise.scale": "0.5"}
    assert parent.data.params.items() >= known.items()
    assert parent.data.tags["folder"] == str(out)
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert files == {"best.yaml", "search.pdf", "search.png", "trials.json"}
    assert runs.keys() == {trial_name(record) for record in records}
    for record in records:
        run = runs[trial_name(record)]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.info.status, run.data.tags["stopped_early"]) == (
            "FINISHED",
            str(record.status == "stopped").lower(),
        )
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == record.epochs


@pytest.mark.ray
@pytest.mark.long
def test_two_searches_at_once_have_folders_of_their_own(cluster, start, tiny_search_yaml, tmp_path):
    """Each best.yaml is the configuration of a trial that its own search trained."""
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    laws = ("gaussian", "logistic")
    processes = [
        start("tune", tiny_search_yaml, "tune.trials=1", f"noise.law={law}", env=environment, cwd=tmp_path)
        for law in laws
    ]
    folders = []
    for law, process in zip(laws, processes, strict=True):
        output, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
        folder = Path(re.findall(r"results +(.+)", output)[-1])
        assert load_config(folder / "best.yaml").noise.law == law
        assert load_config(trial_folder(folder, 0) / "config.yaml").noise.law == law
        folders.append(folder)
    assert {folder.name for folder in folders} == {"tune-tiny-search-1", "tune-tiny-search-2"}


# ---------------------------------------------------------------- without a cluster


@pytest.mark.parametrize(
    ("override", "bundles"),
    [
        ("tune.cpus_per_trial=2", [{"CPU": 2.0}]),
        ("tune.gpus_per_trial=0.5", [{"CPU": 1.0, "GPU": 0.5}]),
        ("tune.actors_per_trial=2", [{}, {"CPU": 1.0}, {"CPU": 1.0}]),
    ],
)
def test_a_trial_has_its_resources_and_a_name_in_rays_dashboard(tiny_search, tmp_path, override, bundles):
    from glr_dist.tuning.ray_tune import _bundles, _trainable

    search = tiny_search(override)
    trainable = _trainable(TrialRunner(search, tmp_path, search.base.tracking), _bundles(search.tune))
    assert (trainable.__name__, trainable.__qualname__) == ("Trial", "Trial")
    resources = trainable.default_resource_request({})
    assert [bundle for bundle in resources.bundles if bundle] == [bundle for bundle in bundles if bundle]
    assert resources.head_bundle_is_empty == ({} in bundles)


def test_a_trial_with_a_gpu_computes_there(tiny_search, tmp_path):
    for override, device in (("tune.gpus_per_trial=0.5", "cuda"), ("tune.gpus_per_trial=0", "cpu")):
        search = tiny_search(override)
        runner = TrialRunner(search, tmp_path, search.base.tracking)
        ((config, _),) = runner.runs(TrialRecord(number=0, point={"noise.scale": 0.7}))
        assert config.execution.device == device


def test_asha_knows_the_trials_of_an_interrupted_search(tiny_search, tmp_path):
    from glr_dist.tuning.asha import scheduler_of

    search = tiny_search("tune.scheduler=asha", "training.epochs=4")
    records = []
    for number in range(4):
        records.append(TrialRecord(number=number, point={}, status="finished"))
        epochs = [{"epoch": epoch, "validation_accuracy": 0.9, "validation_loss": 1.0} for epoch in (1, 2, 3, 4)]
        trial_folder(tmp_path, number).mkdir(parents=True)
        lines = "".join(json.dumps(record) + "\n" for record in epochs)
        (trial_folder(tmp_path, number) / "metrics.jsonl").write_text(lines)
    new = SimpleNamespace(trial_id="new")
    runner = TrialRunner(search, tmp_path, search.base.tracking)
    for known, decision in ((records, "STOP"), ([], "CONTINUE")):
        scheduler = scheduler_of(runner, known)
        scheduler.on_trial_add(None, new)
        assert scheduler.on_trial_result(None, new, {"epoch": 1, "validation/accuracy": 0.8}) == decision


@pytest.mark.slow
def test_a_trial_reports_the_epochs_whose_robustness_was_evaluated(tiny_search, tmp_path):
    TrialRecord(number=0, point={"noise.scale": 0.7}).save(tmp_path)
    reported = []
    search = tiny_search(*WHILE_TRAINING, "tune.scheduler=asha")
    TrialRunner(search, tmp_path, search.base.tracking).run(Interval(0), reported.append)
    assert [metrics["epoch"] for metrics in reported] == [2, 4]
    (record,) = read_records(tmp_path)
    assert (record.status, record.metrics[WHILE]) == ("finished", reported[1][WHILE])


@pytest.mark.slow
def test_an_objective_that_was_left_out_is_one_line(tiny_search, tmp_path):
    record = TrialRecord(number=0, point={"noise.scale": 0.7})
    record.save(tmp_path)
    search = tiny_search(
        *WHILE_TRAINING[1:],
        "tune.objectives=robust/few-validation/fgsm_white_box_eps_0.1",
        "robustness.suite.attacks=[{name: fgsm, threats: [white_box]}]",
        "model.activation=tanh",
    )
    search = replace(search, values={**search.values, "model": {"hidden": [8], "activation": "threshold"}})
    TrialRunner(search, tmp_path, search.base.tracking).run(Interval(0), lambda metrics: None)
    (record,) = read_records(tmp_path)
    assert record.status == "failed"
    assert "'robust/few-validation/fgsm_white_box_eps_0.1' was not measured while the trial trained" in record.reason


@pytest.mark.slow
def test_a_trial_reports_each_epoch_and_continues_from_its_checkpoint(tiny_search, tmp_path):
    search = tiny_search("training.epochs=3")
    record = TrialRecord(number=0, point={"noise.scale": 0.7})
    record.save(tmp_path)
    reported = []

    def stop_at_2(metrics):
        reported.append(metrics)
        if metrics["epoch"] == 2:
            raise SystemExit

    runner = TrialRunner(search, tmp_path, search.base.tracking)
    with pytest.raises(SystemExit):
        runner.run(Interval(0), stop_at_2)
    assert [metrics["epoch"] for metrics in reported] == [1, 2]
    assert read_records(tmp_path) == [record]  # the driver records how it ended
    reported.clear()
    runner.run(Interval(0), reported.append)
    assert [metrics["epoch"] for metrics in reported] == [1, 2, 3]
    (finished,) = read_records(tmp_path)
    assert (finished.status, finished.epochs) == ("finished", 3)
    whole = train(search.config_at(record.point), tmp_path / "whole")
    assert digest(trial_folder(tmp_path, 0)) == whole["params_sha256"]
    assert finished.metrics["validation/accuracy"] == whole["validation_accuracy"]
    reported.clear()
    before = trained(tmp_path, 0)
    runner.run(Interval(0), reported.append)
    assert [metrics["epoch"] for metrics in reported] == [3]
    assert trained(tmp_path, 0) == before


def test_a_failed_trial_has_a_reason_and_a_search_of_failed_trials_is_an_error(tiny_search, tmp_path):
    search = tiny_search("model.activation=relu", "training.optimizer={name: SGD, lr: 1.0e+30}")
    TrialRecord(number=0, point={"noise.scale": 0.7}).save(tmp_path)
    TrialRunner(search, tmp_path, search.base.tracking).run(Interval(0), lambda metrics: None)
    (failed,) = records = read_records(tmp_path)
    assert failed.status == "failed"
    assert not failed.done  # it runs again when the search is resumed
    assert "failed: the logits of the site '3' are not finite" in trial_table(search, records)
    with pytest.raises(ConfigError, match="no trial finished; trial 0: the logits of the site '3'"):
        best_trial(records, search.tune.objectives)


STEPS = """
from torch import nn
from glr_dist.nn import Heaviside

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Heaviside(), nn.Linear(8, 10))
"""


@pytest.mark.slow
def test_an_objective_that_the_attack_cannot_measure_fails_the_trial(tiny_search, tmp_path, monkeypatch):
    """The activations of the package are known before the search; those of the user's own network are not."""
    (tmp_path / "steps_of_test.py").write_text(STEPS)
    monkeypatch.syspath_prepend(tmp_path)
    name = "robust/white_box/fgsm/eps_0.1/accuracy"
    suite = "tune.robustness={attacks: [{name: fgsm, threats: [white_box]}]}"
    search = tiny_search(f"tune.objectives={name}", suite, "model={name: 'steps_of_test:net'}")
    out = tmp_path / "search"
    out.mkdir()
    TrialRecord(number=0, point={"noise.scale": 0.7}).save(out)
    TrialRunner(search, out, search.base.tracking).run(Interval(0), lambda metrics: None)
    (failed,) = read_records(out)
    assert failed.reason.startswith(f"'{name}' could not be measured: ")
