"""Where runs are tracked: the URI, its credentials, and a database that is created once and completely."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracking.uploaded import tracked_run

from glr_dist import tracking
from glr_dist.config import Tracking
from glr_dist.tracking.server import connect


def test_a_uri_takes_its_credentials_from_the_environment_and_a_file_is_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    for uri, used in {
        None: "http://me:secret@host:5000",
        "http://host:5000": "http://me:secret@host:5000",  # as a copy of the configuration has it
        "http://other:5000": "http://other:5000",
    }.items():
        assert tracking.resolved(Tracking(kind="mlflow", uri=uri)).uri == used
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr("glr_dist.tracking.server.connect", lambda uri: None)
    assert tracking.resolved(Tracking(kind="mlflow")).uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_database_whose_creation_was_interrupted_is_created_again(monkeypatch, tmp_path):
    class CrashError(BaseException):
        """Stands for the end of the process."""

    def crashing(client, **_):
        Path(client.tracking_uri.removeprefix("sqlite:///")).write_text("half created")
        raise CrashError

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "search_experiments", crashing)
        with pytest.raises(CrashError):
            connect(uri)
    assert not (tmp_path / "mlflow.db").exists()
    assert [experiment.name for experiment in connect(uri).search_experiments()] == ["Default"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


FOUR = """
import os, sys
from glr_dist.tracking.server import connect, experiment_id

children = []
for _ in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        client = connect(sys.argv[1])
        client.create_run(experiment_id(client, "four"))
        os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


def test_processes_that_start_at_once_create_a_database_and_experiment_once(python, tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    done = python(FOUR, uri)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(uri)
    assert len(client.search_runs([client.get_experiment_by_name("four").experiment_id])) == 4


@pytest.mark.parametrize("uri", ["file:///nowhere", "nonsense://host", "sqlite:////proc/x/mlflow.db"])
def test_an_impossible_location_is_a_warning_and_the_run_finishes(tiny, tmp_path, capsys, uri):
    tracked_run(tiny("training.epochs=1", f"tracking={{kind: mlflow, uri: '{uri}'}}"), tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow has not received all")
    assert line.endswith(f"glr-dist sync {tmp_path / 'run'}")
    assert (tmp_path / "run" / "summary.json").exists()
