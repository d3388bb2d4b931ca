"""Searches on a real Ray: what they leave, and that nothing computed is lost or computed twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from mlflow import MlflowClient

from glr_dist import config
from glr_dist.errors import ClusterError, ConfigError
from glr_dist.robustness.report import read_report
from glr_dist.training.train import train
from glr_dist.tuning import report
from glr_dist.tuning.record import Record, folder_of, read_all
from glr_dist.tuning.search import tune
from glr_dist.tuning.trial import Trial, Turn

TIMEOUT = 120  # seconds after which a process is taken to hang
CONTROL = "robust/control/random_sign/eps_0.1/accuracy"
ROBUST = [
    f"tune.objectives=[validation/accuracy, {CONTROL}]",
    "tune.robustness={examples: 50, attacks: [{name: random_sign}]}",
]


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> str:
    """The address of the tests' Ray with four logical CPUs, which searches of this process and of others join."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def trained(out, number):
    """What is never written twice: all that a trial computed, with its times."""
    folder = folder_of(out, number)
    return [(folder / name).read_text() for name in ("metrics.jsonl", "summary.json")]


def digest(out):
    return json.loads((out / "summary.json").read_text())["params_sha256"]


@pytest.mark.ray
def test_trials_side_by_side_leave_a_table_a_configuration_and_plots(cluster, tiny_search, tmp_path, capsys):
    search, out = tiny_search("tune.concurrent=2", *ROBUST), tmp_path / "out"
    printed = tune(search, out)
    records = read_all(out)
    assert [record.status for record in records] == ["finished"] * 4
    assert all(record.metrics.keys() >= {"validation/accuracy", CONTROL} for record in records)
    assert records[0].point == {"noise.scale": 0.5}
    told = json.loads((out / "trials.json").read_text())["trials"]
    assert {row["number"] for row in told} == {0, 1, 2, 3}
    accuracies = [row["metrics"]["validation/accuracy"] for row in told]
    assert accuracies == sorted(accuracies, reverse=True)
    assert any(row["pareto"] for row in told)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # Ray Tune says nothing
    assert lines[-1].endswith("(4 of 4)")
    assert printed.count("finished") == 4
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((out / "pareto.yaml").read_text())[0]["trial"] == told[0]["number"]
    assert not (out / ".tune").exists()

    # The trial and the file of the best configuration are one run; what chose it are the validation images.
    best = folder_of(out, told[0]["number"])
    assert train(config.load_config(out / "best.yaml"), tmp_path / "best")["params_sha256"] == digest(best)
    assert read_report(best).suite["split"] == "validation"


@pytest.mark.ray
def test_a_trial_with_actors_of_its_own_gives_the_same_bits(cluster, tiny_search, tmp_path):
    search = tiny_search("tune.trials=1", "tune.actors_per_trial=2")
    tune(search, tmp_path / "out")  # the trial itself takes no CPU
    assert train(search.base, tmp_path / "inline")["params_sha256"] == digest(folder_of(tmp_path / "out", 0))


@pytest.mark.ray
def test_a_trial_that_has_no_place_is_one_line(cluster, tiny_search, tmp_path):
    with pytest.raises(ClusterError, match=r"tune.actors_per_trial: no place for a trial of 5 x 1 CPU.* has 4 CPU"):
        tune(tiny_search("tune.actors_per_trial=5", "execution.placement_timeout=0.1"), tmp_path / "out")


def begun(start, address, path, out, *overrides):
    """A search in a process of its own, which joins the cluster."""
    environment = {**os.environ, "RAY_ADDRESS": address}
    return start("tune", path, "--out", out, *overrides, env=environment, stderr=subprocess.PIPE)


def wait_until(condition, process):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.ray
def test_a_search_whose_driver_is_killed_goes_on_and_no_finished_trial_is_run_again(
    cluster, start, tiny_search, tiny_search_yaml, tmp_path
):
    out, number, epochs = tmp_path / "out", 4, 30
    overrides = [f"tune.trials={number}", f"training.epochs={epochs}", "tune.concurrent=1"]
    process = begun(start, cluster, tiny_search_yaml, out, *overrides)
    wait_until(lambda: any(record.status == "finished" for record in read_all(out)), process)
    process.kill()
    process.communicate(timeout=TIMEOUT)
    snapshots = [path.read_bytes() for path in (out / ".tune").rglob("*") if path.is_file()]
    assert snapshots
    assert not any(b"estimator" in content for content in snapshots)  # no setting, hence no password
    done = {record.number: trained(out, record.number) for record in read_all(out) if record.status == "finished"}
    assert 0 < len(done) < number

    search = tiny_search(*overrides)
    printed = tune(search, out, resume=True)
    records = read_all(out)
    assert [record.status for record in records] == ["finished"] * number
    assert printed.count("finished") == number
    assert len(json.loads((out / "trials.json").read_text())["trials"]) == number
    for before, content in done.items():
        assert trained(out, before) == content
    for record in records:  # what was begun was continued, by one process at a time
        lines = (folder_of(out, record.number) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, epochs + 1))
    kept = [trained(out, record.number) for record in records]
    assert tune(search, out, resume=True) == printed  # nothing is left to do
    assert [trained(out, record.number) for record in records] == kept


@pytest.mark.ray
def test_ctrl_c_says_how_to_go_on(cluster, start, tiny_search_yaml, tmp_path):
    out = tmp_path / "out"
    process = begun(start, cluster, tiny_search_yaml, out, "training.epochs=100000")
    wait_until(lambda: read_all(out), process)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, said) == (130, "")
    assert errors == f"stopped with 0 of 4 trials done; continue with --resume --out {out}\n"


@pytest.mark.ray
def test_asha_stops_what_falls_behind_and_trials_are_nested_in_mlflow(cluster, tiny_search, tmp_path):
    overrides = ["tune.scheduler=asha", "tune.algorithm=random", "tune.concurrent=1", "training.epochs=4"]
    rates = "tune.space={training.optimizer.lr: {choice: [0.02, 1.0e-9]}}"
    uri, out = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "out"
    tune(tiny_search(*overrides, rates, "tune.trials=4", f"tracking={{kind: mlflow, uri: '{uri}'}}"), out)
    records = read_all(out)
    assert records[0].status == "finished"
    bad = [record for record in records if record.point["training.optimizer.lr"] < 0.01]
    assert bad
    for record in bad:
        assert record.status == "stopped"
        assert record.epochs == 1 == len((folder_of(out, record.number) / "metrics.jsonl").read_text().splitlines())
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
    assert files == {"best.yaml", "search.png", "trials.json"}
    assert runs.keys() == {str(record.number) for record in records}
    for record in records:
        run = runs[str(record.number)]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.info.status, run.data.tags["stopped_early"]) == (
            "FINISHED",
            str(record.status == "stopped").lower(),
        )
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == record.epochs


# ---------------------------------------------------------------- without a cluster


def test_asha_remembers_the_trials_of_before(tiny_search, tmp_path):
    from glr_dist.tuning.run import _scheduler

    search = tiny_search("tune.scheduler=asha", "training.epochs=4")
    records = []
    for number in range(4):
        records.append(Record(number=number, point={}, status="finished"))
        told = [{"epoch": epoch, "validation_accuracy": 0.9, "validation_loss": 1.0} for epoch in (1, 2, 3, 4)]
        folder_of(tmp_path, number).mkdir(parents=True)
        lines = "".join(json.dumps(record) + "\n" for record in told)
        (folder_of(tmp_path, number) / "metrics.jsonl").write_text(lines)
    new = SimpleNamespace(trial_id="new")
    trial = Trial(search, tmp_path, search.base.tracking)
    for known, decision in ((records, "STOP"), ([], "CONTINUE")):
        scheduler = _scheduler(trial, known)
        scheduler.on_trial_add(None, new)
        assert scheduler.on_trial_result(None, new, {"epoch": 1, "validation/accuracy": 0.8}) == decision


def test_a_trial_is_a_run_that_reports_each_epoch_and_goes_on_from_its_checkpoint(tiny_search, tmp_path):
    search = tiny_search("training.epochs=3")
    record = Record(number=0, point={"noise.scale": 0.7})
    record.keep(tmp_path)
    told = []

    def stop_at_2(figures):
        told.append(figures)
        if figures["epoch"] == 2:
            raise SystemExit

    trial = Trial(search, tmp_path, search.base.tracking)
    with pytest.raises(SystemExit):
        trial.run(Turn(0), stop_at_2)
    assert [figures["epoch"] for figures in told] == [1, 2]
    assert read_all(tmp_path) == [record]  # the driver says what became of it
    told.clear()
    trial.run(Turn(0), told.append)
    assert [figures["epoch"] for figures in told] == [1, 2, 3]
    (finished,) = read_all(tmp_path)
    assert (finished.status, finished.epochs) == ("finished", 3)
    whole = train(search.settings(record.point), tmp_path / "whole")
    assert digest(folder_of(tmp_path, 0)) == whole["params_sha256"]
    assert finished.metrics["validation/accuracy"] == whole["validation_accuracy"]
    told.clear()
    before = trained(tmp_path, 0)
    trial.run(Turn(0), told.append)
    assert [figures["epoch"] for figures in told] == [3]
    assert trained(tmp_path, 0) == before


def test_a_trial_that_fails_says_why_and_a_search_of_them_is_a_mistake(tiny_search, tmp_path):
    search = tiny_search("model.activation=relu", "training.optimizer={name: SGD, lr: 1.0e+30}")
    Record(number=0, point={"noise.scale": 0.7}).keep(tmp_path)
    Trial(search, tmp_path, search.base.tracking).run(Turn(0), lambda figures: None)
    (failed,) = records = read_all(tmp_path)
    assert failed.status == "failed"
    assert not failed.done  # it is tried again when the search is resumed
    assert "failed: the logits of the site '3' are not finite" in report.table(search, records)
    with pytest.raises(ConfigError, match="no trial could be finished; trial 0: the logits of the site '3'"):
        report.best(search, records)


def test_an_objective_that_the_attack_cannot_measure_fails_the_trial(tiny_search, tmp_path):
    name = "robust/transfer/fgsm/eps_0.1/accuracy"
    search = tiny_search(f"tune.objectives={name}", "tune.robustness={attacks: [{name: fgsm, threats: [transfer]}]}")
    blind = "tune.robustness={attacks: [{name: fgsm, threats: [white_box]}]}"
    search = replace(search, tune=search.tune.model_copy(update={"robustness": tiny_search(blind).tune.robustness}))
    Record(number=0, point={"noise.scale": 0.7}).keep(tmp_path)
    Trial(search, tmp_path, search.base.tracking).run(Turn(0), lambda figures: None)
    (failed,) = read_all(tmp_path)
    assert failed.reason.startswith(f"'{name}' could not be measured: ")
