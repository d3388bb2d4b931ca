"""Resumed searches: damaged, stray and edited files, and folders that another process uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from glr_dist import cli
from glr_dist.claims import ClaimedError
from glr_dist.errors import CheckpointError, ConfigError
from glr_dist.runs import RunFolder
from glr_dist.tuning import trial_runner
from glr_dist.tuning.asha import scheduler_of
from glr_dist.tuning.search import tune
from glr_dist.tuning.trial_queue import queue_of
from glr_dist.tuning.trial_record import TrialRecord, read_record, read_records, trial_folder
from glr_dist.tuning.trial_runner import Interval, TrialRunner

TIMEOUT = 60  # seconds after which a process counts as hanging


@pytest.fixture
def finished(tiny_search, tmp_path):
    """The folder of a finished search of four trials, whose trials were not trained."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "tune.yaml").write_text(tiny_search().dump())
    for number in range(4):
        metrics = {"validation/accuracy": 0.9 - number / 10, "validation/loss": 1.0}
        point = {"noise.scale": 0.5 + number / 10}
        TrialRecord(number=number, point=point, status="finished", metrics=metrics, epochs=2).save(out)
    return out


def record_of(out, number=1):
    return trial_folder(out, number).with_suffix(".json")


def edited(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_finished_search_is_resumed_without_ray(tiny_search, finished):
    assert tune(tiny_search(), finished, resume=True).count("finished") == 4


def test_a_resumed_search_needs_no_configuration(capsys, finished, tmp_path):
    assert cli.main(["tune", "--resume", "--out", str(finished)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{finished / 'best.yaml'}")
    assert cli.main(["tune", "--resume", "--out", str(tmp_path / "nothing")]) == 2
    assert "tune.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", "--out", str(finished)])
    assert "CONFIG.yaml is missing" in capsys.readouterr().err


# ---------------------------------------------------------------- damaged files

DAMAGED_RECORDS = {
    "truncated": lambda path: path.write_text(path.read_text()[:40]),
    "empty": lambda path: path.write_text(""),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "a list": lambda path: path.write_text("[1, 2]"),
    "a number": lambda path: path.write_text("3"),
    "null": lambda path: path.write_text("null"),
    "nested deeply": lambda path: path.write_text("[" * 100_000),
    "a huge integer": lambda path: path.write_text('{"number": ' + "1" * 5000 + "}"),
    "an unknown key": lambda path: edited(path, status2="finished"),
    "an unknown status": lambda path: edited(path, status="over"),
    "metrics of text": lambda path: edited(path, metrics={"validation/accuracy": "good"}),
    "metrics of a list": lambda path: edited(path, metrics=[0.5]),
    "no point": lambda path: edited(path, point=None),
    "a point of text": lambda path: edited(path, point="noise.scale"),
    "a negative number of epochs": lambda path: edited(path, epochs=-1),
    "infinite seconds": lambda path: edited(path, seconds=float("inf")),
    "the record of another trial": lambda path: edited(path, number=2),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
}

UNFIT_RECORDS = {
    "another field": {"point": {"noise.floor": 0.5}},
    "one more field": {"point": {"noise.scale": 0.5, "seed": 1}},
    "a value outside": {"point": {"noise.scale": 300.0}},
    "a value of another type": {"point": {"noise.scale": [1]}},
    "no objective": {"metrics": {"validation/loss": 1.0}},
    "more epochs": {"epochs": 10**9},
    "a parent without a population": {"parent": 0},
    "a measurement after the end": {"measured": {"7": {"validation/accuracy": 0.5}}},
}


def error_line(capsys, search_yaml, out, *overrides):
    assert cli.main(["tune", str(search_yaml), *overrides, "--resume", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 1000
    return line


@pytest.mark.parametrize("damage", DAMAGED_RECORDS.values(), ids=DAMAGED_RECORDS)
def test_a_damaged_record_is_one_line(capsys, tiny_search_yaml, finished, damage):
    damage(record_of(finished))
    line = error_line(capsys, tiny_search_yaml, finished)
    assert f"{record_of(finished)}: is damaged (" in line
    assert "remove it and the folder 1 beside it" in line


@pytest.mark.parametrize("values", UNFIT_RECORDS.values(), ids=UNFIT_RECORDS)
def test_a_record_of_another_search_is_one_line(capsys, tiny_search_yaml, finished, values):
    edited(record_of(finished), **values)
    assert f"{record_of(finished)}: does not fit the search (" in error_line(capsys, tiny_search_yaml, finished)


def test_a_removed_record_is_run_again_at_the_same_point(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=random")
    runner = TrialRunner(search, tmp_path, search.base.tracking)
    queue = queue_of(runner, [])
    points = [read_record(tmp_path, queue.ask().number).point for _ in range(4)]
    record_of(tmp_path, 2).unlink()
    metrics = {"validation/accuracy": 0.5, "validation/loss": 1.0}
    kept = [record.updated(status="finished", metrics=metrics) for record in read_records(tmp_path)]
    queue = queue_of(runner, kept)
    assert queue.ask() == Interval(2)
    assert read_record(tmp_path, 2).point == points[2]
    assert queue.ask() is None


@pytest.mark.parametrize("name", ["9x.json", "copy of 1.json", "01.json", "-1.json", "٣.json", "9" * 200 + ".json"])
def test_a_stray_file_is_ignored_with_a_warning(capsys, tiny_search, finished, name):
    stray = finished / "trials" / name
    stray.write_bytes(record_of(finished).read_bytes())
    assert tune(tiny_search(), finished, resume=True).count("finished") == 4
    assert capsys.readouterr().err == f"warning: {stray}: is not the record of a trial; ignored\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b"model: {}",
        b"tune: {space: {noise.scale: {choice: null}}}",
        b"tune: [",
        b"{" * 300,
    ],
    ids=["empty", "not UTF-8", "a list", "no search", "an invalid space", "truncated", "nested"],
)
def test_a_damaged_search_file_is_one_line(capsys, tiny_search_yaml, finished, content):
    (finished / "tune.yaml").write_bytes(content)
    assert f"{finished / 'tune.yaml'}: is damaged or was edited (" in error_line(capsys, tiny_search_yaml, finished)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"../../x"])
def test_a_damaged_parent_run_is_replaced_with_a_warning(capsys, tiny_search, finished, database, content):
    (finished / ".mlflow_run").write_bytes(content)
    search = tiny_search(f"tracking={{kind: mlflow, uri: '{database}'}}")
    assert tune(search, finished, resume=True).count("finished") == 4
    assert f"warning: {finished / '.mlflow_run'}: is damaged" in capsys.readouterr().err
    assert len((finished / ".mlflow_run").read_text()) == 32


@pytest.mark.parametrize("content", [None, b"\xff\xfe\n", b"3\n", b"{}\n", b"[1]\n"])
def test_asha_ignores_trials_with_damaged_metrics(capsys, tiny_search, finished, content):
    pytest.importorskip("ray")
    search = tiny_search("tune.scheduler=asha")
    for number in range(4):
        trial_folder(finished, number).mkdir()
        if content is not None:
            RunFolder(trial_folder(finished, number)).metrics_file.write_bytes(content)
    scheduler_of(TrialRunner(search, finished, search.base.tracking), read_records(finished))
    assert capsys.readouterr().err.count("metrics.jsonl: asha ignores the trial (") == (0 if content is None else 4)


def test_a_missing_checkpoint_of_a_parent_is_one_line(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=4", "tune.interval=2")
    metrics = {"validation/accuracy": 0.5, "validation/loss": 1.0}
    for number in range(4):
        TrialRecord(
            number=number, point={"noise.scale": 0.5}, status="paused", metrics=metrics, measured={2: metrics}, epochs=2
        ).save(tmp_path)
    queue = queue_of(TrialRunner(search, tmp_path, search.base.tracking), read_records(tmp_path))
    with pytest.raises(CheckpointError, match=r"epoch-00002.pt: is missing, so that trial 4 cannot start"):
        queue.ask()


# ---------------------------------------------------------------- edited together


@pytest.mark.slow
def test_a_search_edited_together_with_the_command_meets_trials_of_another_network(capsys, tiny_search, tmp_path):
    out = tmp_path / "out"
    search = tiny_search("tune.trials=1")
    TrialRecord(number=0, point={"noise.scale": 0.5}).save(out)
    TrialRunner(search, out, search.base.tracking).run(Interval(0), lambda metrics: None)
    (out / "tune.yaml").write_text(search.dump())
    assert tune(search, out, resume=True)
    for override, key in (
        ("model.hidden=[9]", "model.hidden"),
        ("training.optimizer={name: SGD, lr: 0.1}", "training.optimizer"),
        ("noise.learn=unit", "noise.learn"),
        ("training.epochs=3", "training.epochs"),
    ):
        other = tiny_search("tune.trials=1", override)
        (out / "tune.yaml").write_text(other.dump())
        with pytest.raises(ConfigError, match=rf"{key}.*: the run in {trial_folder(out, 0)} has .*") as error:
            tune(other, out, resume=True)
        assert len(str(error.value).splitlines()) == 1


# ---------------------------------------------------------------- claims


def holder(folder, purpose):
    """Starts a process that claims a folder until it is killed."""
    code = (
        "import sys, time; from glr_dist.claims import claim; "
        "held = claim(sys.argv[1], sys.argv[2]); print('held', flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder, purpose], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.process
def test_a_search_in_a_folder_that_another_process_uses_is_one_line(tiny_search, finished):
    process = holder(finished, "search")
    try:
        with pytest.raises(ClaimedError, match=rf"{finished}: is in use by process {process.pid} on .* since"):
            tune(tiny_search(), finished, resume=True)
    finally:
        process.kill()
        process.wait()
    assert tune(tiny_search(), finished, resume=True)  # the claim of a dead process is void


@pytest.mark.process
def test_a_trial_that_a_frozen_process_holds_is_lost_within_a_limit(tiny_search, tmp_path, monkeypatch):
    monkeypatch.setattr(trial_runner, "_PATIENCE", 0.3)
    search = tiny_search("tune.trials=1")
    TrialRecord(number=0, point={"noise.scale": 0.5}).save(tmp_path)
    runner = TrialRunner(search, tmp_path, search.base.tracking)
    process = holder(trial_folder(tmp_path, 0), "run")
    try:
        runner.run(Interval(0), lambda metrics: None)
    finally:
        process.kill()
        process.wait()
    lost = read_record(tmp_path, 0)
    assert lost.status == "lost"
    assert f"is in use by process {process.pid} on " in lost.reason
    runner.run(Interval(0), lambda metrics: None)
    assert read_record(tmp_path, 0).status == "finished"
