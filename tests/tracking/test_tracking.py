"""Runs in MLflow: every point once, whatever the server does; the model that was trained; the end as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from glr_dist import cli, config, tracking
from glr_dist.errors import ConfigError, TrackingError
from glr_dist.robustness.evaluate import evaluate
from glr_dist.robustness.suite import load_suite
from glr_dist.tracking import follower
from glr_dist.tracking.names import metrics_of
from glr_dist.tracking.state import State, held
from glr_dist.training.trained import load_trained
from glr_dist.training.trainer import Trainer

mlflow = pytest.importorskip("mlflow")
from mlflow import MlflowClient  # noqa: E402

from glr_dist.tracking.server import connect  # noqa: E402  # it imports mlflow

TIMEOUT = 120  # seconds after which a server is taken to hang


@pytest.fixture(autouse=True)
def place(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(follower, "_SLOW", 60.0)  # these tests are about what arrives; a busy machine may be slow


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """A SQLite file with its tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    return tracking.resolved(config.Tracking(kind="mlflow", uri=f"sqlite:///{path}")).uri or ""


def tracked_run(settings: config.Config, out: Path, *, resume: bool = False) -> Trainer:
    trainer = Trainer(settings, out, resume=resume)
    with tracking.tracked(settings, out):
        trainer.run()
    return trainer


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def points(client: MlflowClient, folder: Path) -> tuple[Counter, set]:
    """The points of the run on the server, but those of its end; and those that the folder has."""
    run_id = State.read(folder).run_id
    stored = Counter(
        (name, point.step, point.value, point.timestamp)
        for name in client.get_run(run_id).data.metrics
        if not name.startswith(("test/", "robust", "clean", "corruption"))
        for point in client.get_metric_history(run_id, name)
    )
    records = [(r["epoch"], r) for r in lines(folder, "metrics.jsonl")] + list(
        enumerate(lines(folder, "system.jsonl"), 1)
    )
    wanted = {
        (name, step, value, int(1000 * r["time"])) for step, r in records for name, value in metrics_of(r).items()
    }
    return stored, wanted


def assert_complete(client: MlflowClient, folder: Path, *, epochs: int) -> None:
    stored, wanted = points(client, folder)
    assert set(stored) == wanted
    assert set(stored.values()) == {1}
    assert {step for name, step, *_ in wanted if name == "train/loss"} == set(range(1, epochs + 1))


# ---------------------------------------------------------------- what arrives


@pytest.fixture(scope="module")
def followed(tiny, database, tmp_path_factory) -> tuple[Path, MlflowClient]:
    out = tmp_path_factory.mktemp("runs") / "mine"
    tags = f"tracking={{kind: mlflow, uri: '{database}', tags: {{mlflow.note.content: hello}}, register_as: digits}}"
    tracked_run(tiny(tags, "model.dropout=0.2"), out)
    return out, MlflowClient(database)


def test_nothing_is_tracked_unless_it_is_asked_for(tiny, tmp_path):
    tracked_run(tiny("training.epochs=1"), tmp_path / "run")
    assert not [path.name for path in (tmp_path / "run").iterdir() if "track" in path.name or "system" in path.name]


def test_a_run_arrives_whole(followed):
    out, client = followed
    assert_complete(client, out, epochs=3)
    run = client.get_run(State.read(out).run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    assert run.data.params["noise.scale"] == "0.5"
    assert run.data.params["training.optimizer.name"] == "Adam"
    assert run.data.tags.keys() >= {"mlflow.note.content", "version.torch", "version.mlflow", "version.python"}
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("digits", "training")
    summary = json.loads((out / "summary.json").read_text())
    assert run.data.metrics["test/accuracy"] == summary["test_accuracy"]
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "learning_curve.png", "metrics.jsonl", "summary.json"}


def test_the_model_predicts_what_the_network_does_and_is_registered(followed):
    out, client = followed
    mlflow.set_tracking_uri(client.tracking_uri)
    (version,) = client.search_model_versions("name = 'digits'")
    assert version.run_id == State.read(out).run_id
    loaded = mlflow.pyfunc.load_model("models:/digits/1")
    trained = load_trained(out, "cpu")  # threshold units, and dropout that must be off
    x, _ = trained.dataset.test.batch(slice(None))
    for some in (x, x[:1]):
        assert np.array_equal(loaded.predict(some.numpy()), trained.net.model(some).detach().numpy())
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert loaded.input_example.shape == (2, 1, 8, 8)


def test_the_report_and_nothing_twice(followed, capsys):
    out, client = followed
    evaluate([out], load_suite("quick", []), actors=0)
    tracking.send_report(out)
    run_id = State.read(out).run_id
    assert "warning" not in capsys.readouterr().err

    def everything() -> tuple:
        run = client.get_run(run_id)
        history = {name: len(client.get_metric_history(run_id, name)) for name in run.data.metrics}
        models = client.search_logged_models([run.info.experiment_id])
        return history, run.data.tags, run.info.end_time, len(models), client.search_model_versions("name = 'digits'")

    before = everything()
    assert before[0]["clean/accuracy"] == 1
    assert any(re.fullmatch(r"robust/.*/eps_0\.1/accuracy", name) for name in before[0])
    table = json.loads(Path(client.download_artifacts(run_id, "robustness/table.json")).read_text())
    assert table["columns"][0] == "condition"
    assert table["data"][0][0] == "clean"
    assert cli.main(["sync", str(out)]) == 0
    assert f"run {run_id}" in capsys.readouterr().out
    # Also where it is not remembered what has arrived.
    State.read(out).change(lines={}, sent={})
    tracking.sync(out)
    after = everything()
    assert after[0] == before[0]
    assert after[1:4] == before[1:4]
    assert len(after[4]) == 1


# ---------------------------------------------------------------- how it ends

ENDS = {
    "Ctrl-C": (KeyboardInterrupt, "KILLED", "false"),
    "stopped by Tune": (SystemExit, "FINISHED", "true"),
    "exception": (RuntimeError, "FAILED", "false"),
}


@pytest.mark.parametrize(("error", "status", "early"), ENDS.values(), ids=ENDS)
def test_a_run_ends_as_what_ended_it_and_is_continued_as_the_same(tiny, database, tmp_path, error, status, early):
    out, client = tmp_path / "run", MlflowClient(database)
    settings = tiny("training.epochs=3", f"tracking={{kind: mlflow, uri: '{database}'}}")
    trainer = Trainer(settings, out)
    square_norms = trainer._square_norms

    def stopped(squares: dict) -> None:
        if trainer.net.step == 5:
            raise error
        square_norms(squares)

    trainer._square_norms = stopped
    with pytest.raises(error), tracking.tracked(settings, out):
        trainer.run()
    run_id = State.read(out).run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["stopped_early"]) == (status, early)
    assert_complete(client, out, epochs=1)
    # From another folder, and with no word on where: as it was.
    elsewhere = tiny("training.epochs=3", "tracking.kind=mlflow")
    tracked_run(elsewhere, out, resume=True)
    assert State.read(out).run_id == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["stopped_early"]) == ("FINISHED", "false")
    assert_complete(client, out, epochs=3)


def test_a_run_that_goes_on_is_not_synced(followed):
    out, _ = followed
    with held(out) as mine:
        assert mine
        with pytest.raises(ConfigError, match="goes on"):
            tracking.sync(out)


def test_a_run_that_was_not_tracked_is_not_synced(tiny, tmp_path):
    Trainer(tiny(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"tracking\.kind=mlflow"):
        tracking.sync(tmp_path / "run")


@pytest.mark.parametrize("uri", ["file:///nowhere", "nonsense://host", "sqlite:////proc/x/mlflow.db"])
def test_a_place_that_cannot_be_is_a_warning_and_the_run_ends_well(tiny, tmp_path, capsys, uri):
    tracked_run(tiny("training.epochs=1", f"tracking={{kind: mlflow, uri: '{uri}'}}"), tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow has not received all")
    assert line.endswith(f"glr-dist sync {tmp_path / 'run'}")
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_parent_and_its_children(database, tiny, tmp_path):
    place = config.Tracking(kind="mlflow", uri=database, experiment="search")
    client = MlflowClient(database)
    (tmp_path / "best.yaml").write_text("seed: 1")
    folder = tmp_path / "search-1"
    with tracking.parent_run(place, folder, {"tune": {"trials": 2}, "noise.scale": "x" * 9000}) as parent:
        child = place.model_copy(update={"tags": {"mlflow.parentRunId": parent.run_id}})
        tracked_run(tiny("training.epochs=1").model_copy(update={"tracking": child}), tmp_path / "trial")
        parent.finish({"best/validation/accuracy": 0.5}, [tmp_path / "best.yaml"])
    run = client.get_run(parent.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"best/validation/accuracy": 0.5})
    assert run.data.params["tune.trials"] == "2"
    assert client.get_run(State.read(tmp_path / "trial").run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    with pytest.raises(KeyboardInterrupt), tracking.parent_run(place, folder, {}, parent.run_id) as again:
        raise KeyboardInterrupt
    assert again.run_id == parent.run_id
    assert client.get_run(parent.run_id).info.status == "KILLED"


def test_what_children_could_not_send_is_sent_under_a_parent_that_came_later(database, tiny, tmp_path, capsys):
    away, folders = tmp_path / "away", [tmp_path / "0", tmp_path / "1", tmp_path / "untracked"]
    away.touch()
    place = config.Tracking(kind="mlflow", uri=f"sqlite:///{away}/mlflow.db", experiment="late")
    for folder in folders[:2]:
        tracked_run(tiny("training.epochs=1").model_copy(update={"tracking": place}), folder)
    capsys.readouterr()
    tracking.sync_children(place, folders, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow has not received all of 2 trials (")
    assert line.endswith("the same command with --resume sends the rest")
    away.unlink()
    away.symlink_to(Path(database.removeprefix("sqlite:///")).parent)
    with tracking.parent_run(place, tmp_path / "late-1", {}) as parent:
        tracking.sync_children(place, folders, parent.run_id)
    assert capsys.readouterr().err == ""
    client = MlflowClient(database)
    for folder in folders[:2]:
        assert_complete(client, folder, epochs=1)
        run = client.get_run(State.read(folder).run_id)
        assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent.run_id)


def test_a_uri_takes_its_credentials_from_the_environment_and_a_file_is_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    for uri, used in {
        None: "http://me:secret@host:5000",
        "http://host:5000": "http://me:secret@host:5000",  # as a copy of the configuration has it
        "http://other:5000": "http://other:5000",
    }.items():
        assert tracking.resolved(config.Tracking(kind="mlflow", uri=uri)).uri == used
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr("glr_dist.tracking.server.connect", lambda uri: None)
    assert tracking.resolved(config.Tracking(kind="mlflow")).uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_database_whose_making_was_interrupted_is_made_anew(monkeypatch, tmp_path):
    class CrashError(BaseException):
        """The end of the process."""

    def crashing(client, **_):
        Path(client.tracking_uri.removeprefix("sqlite:///")).write_text("half made")
        raise CrashError

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "search_experiments", crashing)
        with pytest.raises(CrashError):
            connect(uri)
    assert not (tmp_path / "mlflow.db").exists()
    assert [experiment.name for experiment in connect(uri).search_experiments()] == ["Default"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


# ---------------------------------------------------------------- several at once

FOUR = """
import os, sys
from glr_dist.tracking.server import connect, experiment_of

children = []
for _ in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        client = connect(sys.argv[1])
        client.create_run(experiment_of(client, "four"))
        os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


def test_processes_that_start_at_once_make_a_fresh_database_and_experiment_once(python, tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    done = python(FOUR, uri)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(uri)
    assert len(client.search_runs([client.get_experiment_by_name("four").experiment_id])) == 4


# ---------------------------------------------------------------- a server that comes and goes


class Server:
    """An MLflow server on SQLite, as a child process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self._artifacts = folder / "artifacts"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self._artifacts)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, start_new_session=True, **quiet)

    def await_answer(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path, database) -> Iterator[Server]:
    server = Server(tmp_path)
    shutil.copy(database.removeprefix("sqlite:///"), server.database)  # with its tables
    yield server
    server.kill()


def with_pauses(trainer: Trainer, after_epoch: Callable[[int], None]) -> list[float]:
    """Makes the trainer call a function after each epoch; returns the seconds between steps without it."""
    tell, norms, gaps, last = trainer._tell, trainer._square_norms, [], [time.monotonic()]

    def told(bar: object, record: dict) -> None:
        tell(bar, record)
        before = time.monotonic()
        after_epoch(record["epoch"])
        last[0] += time.monotonic() - before

    def stepped(squares: dict) -> None:
        gaps.append(time.monotonic() - last[0])
        last[0] = time.monotonic()
        norms(squares)

    trainer._tell, trainer._square_norms = told, stepped
    return gaps


@pytest.mark.slow
def test_a_server_that_is_down_at_first_or_goes_away_and_comes_back(server, tiny, tmp_path, capfd, monkeypatch):
    secret = server.uri.replace("://", "://me:hush-hush@")
    # Never started: a warning, no wait, nothing lost.
    settings = tiny(
        "training.epochs=2", f"tracking={{kind: mlflow, uri: '{secret}', experiment: away, register_as: early}}"
    )
    early = tmp_path / "early"
    trainer = Trainer(settings, early)
    with tracking.tracked(settings, early):
        trainer.run()
        time.sleep(2)  # it is known to be down
        ended = time.monotonic()
    assert time.monotonic() - ended < 3
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert f"glr-dist sync {early}" in line
    with pytest.raises(TrackingError) as caught:
        tracking.sync(early)
    # One that goes on later waits for nothing, and says nothing.
    with pytest.raises(tracking.Paused), tracking.tracked(settings, early):
        time.sleep(2)
        ended = time.monotonic()
        raise tracking.Paused
    assert time.monotonic() - ended < 0.5
    assert capfd.readouterr().err == ""
    with tracking.tracked(settings, early):
        pass
    server.start()
    server.await_answer()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    tracking.sync(early)
    client = MlflowClient(server.uri)
    assert_complete(client, early, epochs=2)
    assert client.get_run(State.read(early).run_id).info.status == "FINISHED"
    (version,) = client.search_model_versions("name = 'early'")
    assert version.run_id == State.read(early).run_id

    # Killed in the middle of a run, and started again.
    monkeypatch.setattr(follower, "_DOWN", 60.0)
    monkeypatch.setattr(follower, "_TRIES", 100)
    epochs, out = 60, tmp_path / "run"
    settings = tiny(f"training.epochs={epochs}", f"tracking={{kind: mlflow, uri: '{secret}', experiment: away}}")
    trainer = Trainer(settings, out)

    def after(epoch: int) -> None:
        time.sleep(0.1)
        if epoch == 20:
            assert State.read(out).lines["metrics.jsonl"] > 0  # it had begun to arrive
            server.kill()
        if epoch == 40:
            server.start()
        if epoch == epochs - 1:
            server.await_answer()

    gaps = with_pauses(trainer, after)
    with tracking.tracked(settings, out):
        trainer.run()
    assert max(gaps) < 1
    assert len(gaps) == 3 * epochs
    assert_complete(client, out, epochs=epochs)
    assert client.get_run(State.read(out).run_id).info.status == "FINISHED"

    # The password is in the memory of this process alone.
    printed = capfd.readouterr()
    texts = [said.out, said.err, printed.out, printed.err, str(caught.value)]
    server.kill()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert server.database in files
    assert out / "tracking.json" in files
    assert not [text for text in texts if "hush" in text]
    assert not [path for path in files if b"hush" in path.read_bytes()]
