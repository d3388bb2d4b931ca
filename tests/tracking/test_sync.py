"""`glr-dist sync`: asks the server what it has, and uploads the rest to the server that the user names."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracking.uploaded import assert_complete, tracked_run

from glr_dist import cli, tracking
from glr_dist.tracking import follower
from glr_dist.tracking.location import sqlite_path
from glr_dist.tracking.state import State
from glr_dist.training.trainer import Trainer


@pytest.fixture
def own(database, tmp_path) -> str:
    """A database of one test."""
    path = tmp_path / "db" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(sqlite_path(database), path)
    return f"sqlite:///{path}"


@pytest.fixture
def run(tiny, own, tmp_path) -> Path:
    """A tracked run of two epochs."""
    tracked_run(
        tiny("training.epochs=2", f"tracking={{kind: mlflow, uri: '{own}', tags: {{mine: yes!}}}}"), tmp_path / "run"
    )
    return tmp_path / "run"


def check(run: Path, uri: str) -> MlflowClient:
    """Checks that a server has all of a run."""
    client = MlflowClient(uri)
    assert_complete(client, run, epochs=2)
    found = client.get_run(State.read(run).run_id)
    assert (found.info.status, found.info.lifecycle_stage) == ("FINISHED", "active")
    assert found.data.params["noise.scale"] == "0.5"
    assert found.data.tags["mine"] == "yes!"
    assert found.data.metrics["test/accuracy"] == json.loads((run / "summary.json").read_text())["test_accuracy"]
    assert len(found.inputs.dataset_inputs) == 1
    names = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert names == {"config.yaml", "learning_curve.pdf", "learning_curve.png", "metrics.jsonl", "summary.json"}
    (model,) = client.search_logged_models([found.info.experiment_id], f"source_run_id = '{found.info.run_id}'")
    assert str(model.status) == "READY"
    return client


def copies(client: MlflowClient, run: Path) -> int:
    """Returns how often a server has a run."""
    experiment = client.get_experiment_by_name("glr_dist").experiment_id
    return len(client.search_runs([experiment], f"tags.`glr_dist.key` = '{State.read(run).key}'"))


@pytest.mark.slow
def test_a_run_that_was_deleted_is_created_again(run, own, capsys):
    deleted = State.read(run).run_id
    check(run, own).delete_run(deleted)
    assert cli.main(["sync", str(run)]) == 0
    assert State.read(run).run_id != deleted
    assert f"as run {State.read(run).run_id}" in capsys.readouterr().out
    check(run, own)


@pytest.mark.slow
def test_a_database_that_was_moved_is_not_replaced_by_an_empty_one(run, own, capsys):
    path = sqlite_path(own)
    moved = path.rename(path.with_name("elsewhere.db"))
    before = set(path.parent.iterdir())
    assert cli.main(["sync", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"glr-dist: the database {path} does not exist; put it back, or name another place by --uri"
    assert set(path.parent.iterdir()) == before
    assert cli.main(["sync", str(run), "--uri", f"sqlite:///{moved}"]) == 0  # which has the run
    client = check(run, f"sqlite:///{moved}")
    assert copies(client, run) == 1


@pytest.mark.slow
def test_an_older_copy_of_a_database_receives_the_rest(tiny, own, tmp_path):
    path, run = sqlite_path(own), tmp_path / "run"
    config = tiny("training.epochs=2", f"tracking={{kind: mlflow, uri: '{own}', tags: {{mine: yes!}}}}")
    trainer = Trainer(config, run)

    def interrupt(record: dict) -> None:
        raise KeyboardInterrupt

    trainer.on_epoch = interrupt
    with pytest.raises(KeyboardInterrupt), tracking.tracked(config, run):
        trainer.run()
    older = shutil.copy(path, tmp_path / "older.db")
    tracked_run(config, run, resume=True)
    check(run, own)
    shutil.copy(older, path)
    tracking.sync(run)
    check(run, own)


@pytest.mark.parametrize("name", ["", "config.yaml", pytest.param("summary.json", marks=pytest.mark.long)])
def test_artifacts_that_were_deleted_are_uploaded_again(run, own, name):
    artifacts = Path(MlflowClient(own).get_run(State.read(run).run_id).info.artifact_uri.removeprefix("file://"))
    if name:
        (artifacts / name).unlink()
    else:
        shutil.rmtree(artifacts)
    tracking.sync(run)
    check(run, own)


@pytest.mark.slow
def test_a_model_that_was_deleted_is_uploaded_again(run, own):
    MlflowClient(own).delete_logged_model(State.read(run).model_id)
    tracking.sync(run)
    check(run, own)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_run_is_uploaded_to_another_server_and_back(run, own, database, tmp_path, monkeypatch, capsys, by):
    path = tmp_path / "other" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(sqlite_path(database), path)
    other = f"sqlite:///{path}"
    before = State.read(run)
    if by == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert cli.main(["sync", str(run), *(["--uri", other] if by == "option" else [])]) == 0
    assert f"MLflow at {other} has everything" in capsys.readouterr().out
    check(run, other)
    assert cli.main(["sync", str(run), "--uri", own]) == 0
    assert State.read(run).run_id == before.run_id
    for uri in (own, other):
        client = MlflowClient(uri)
        assert copies(client, run) == 1
    check(run, own)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"uri": 5, "experiment": "x"}',
        b'{"uri": "sqlite:///x.db", "experiment": "x", "lines": [1]}',
        b'{"uri": "sqlite:///x.db", "experiment": "x", "sent": {"a": {}}}',
        b'{"uri": "sqlite:///x.db", "experiment": "x", "end": {}}',
    ],
)
def test_a_damaged_state_is_one_line(tiny, tmp_path, capsys, content):
    Trainer(tiny(), tmp_path / "run")
    (tmp_path / "run" / "tracking.json").write_bytes(content)
    capsys.readouterr()
    assert cli.main(["sync", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"glr-dist: {tmp_path / 'run' / 'tracking.json'}: is damaged (")
    assert len(line) < 600


# ---------------------------------------------------------------- credentials


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """A server that a run's folder names, and the requests that it receives."""
    received: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(f"{self.path} {dict(self.headers)}")
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


CREDENTIALS = {
    "password": {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "hush-hush"},
    "token": {"MLFLOW_TRACKING_TOKEN": "hush-hush"},
    "password for another server": {
        "MLFLOW_TRACKING_URI": "http://other:5000",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "hush-hush",
    },
    "another port": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "MLFLOW_TRACKING_TOKEN": "hush-hush"},
}


@pytest.mark.process
@pytest.mark.parametrize("variables", CREDENTIALS.values(), ids=CREDENTIALS)
def test_credentials_go_only_to_the_server_that_they_are_for(run, stranger, monkeypatch, capsys, tiny, variables):
    uri, received = stranger
    State.read(run).change(uri=uri)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracking.send_report(run)  # of a folder that may have come from anyone
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the run's folder names the server {uri}, but MLFLOW_TRACKING_" in line
    if "MLFLOW_TRACKING_URI" not in variables:
        assert cli.main(["sync", str(run)]) == 2
        assert "--uri URI" in capsys.readouterr().err
        tracked_run(tiny("training.epochs=2", "tracking.kind=mlflow"), run, resume=True)
        assert "the run's folder names the server" in capsys.readouterr().err
    assert received == []
    # The server that the user names receives them.
    monkeypatch.setattr(follower, "_PATIENCE", 1.0)
    assert cli.main(["sync", str(run), "--uri", uri]) == 2
    assert "hush-hush" not in capsys.readouterr().err
    assert received
    assert all("Authorization" in request for request in received)


@pytest.mark.process
def test_without_credentials_the_server_of_the_folder_is_asked(run, stranger, capsys):
    uri, received = stranger
    State.read(run).change(uri=uri)
    assert cli.main(["sync", str(run)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert received
