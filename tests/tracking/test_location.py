"""Where runs are tracked: the URI, its credentials, and a database that is created once and completely."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracking.uploaded import tracked_run

from glr_dist import cli, tracking
from glr_dist.config import Config, Tracking, build
from glr_dist.errors import ConfigError, TrackingError
from glr_dist.tracking import server
from glr_dist.tracking.location import sqlite_path, tracking_uri
from glr_dist.tracking.server import connect, experiment_id
from glr_dist.tracking.state import State, locked


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


def test_auto_tracks_where_a_server_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Tracking().kind == "auto"
    for value in (None, ""):  # an empty variable counts as unset
        if value is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
        assert tracking.resolved(Tracking()).kind == "none"
        assert tracking.resolved(Tracking(uri="http://h:1")) == Tracking(kind="mlflow", uri="http://h:1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:2")
    assert tracking.resolved(Tracking()) == Tracking(kind="mlflow", uri="http://h:2")
    assert tracking.resolved(Tracking(kind="none")).kind == "none"


@pytest.mark.slow
def test_a_run_is_tracked_if_the_environment_names_a_server(tiny, tmp_path, monkeypatch, database):
    tracked_run(tiny("training.epochs=1"), tmp_path / "untracked")
    assert not (tmp_path / "untracked" / "tracking.json").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    tracked_run(tiny("training.epochs=1"), tmp_path / "tracked")
    assert State.read(tmp_path / "tracked").run_id is not None


@pytest.mark.parametrize("uri", [None, "sqlite:///mlflow.db", "sqlite:///runs/x.db?timeout=5", "sqlite://"])
def test_a_ray_job_needs_a_location_that_outlives_it(tiny_yaml, tmp_path, monkeypatch, capsys, uri):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    words = [] if uri is None else [f"tracking.uri={uri}"]
    assert cli.main(["train", str(tiny_yaml), "--out", str(tmp_path / "run"), "tracking.kind=mlflow", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("glr-dist: tracking.uri: a Ray job runs in a temporary copy of its working directory")
    with pytest.raises(ConfigError, match="Ray job"):
        tracking.resolved(Tracking(kind="mlflow", uri=uri))
    assert set(tmp_path.rglob("*")) == before
    for lasting in (f"sqlite:///{tmp_path}/mlflow.db", "http://h:5000", "postgresql+psycopg2://h/db"):
        tracking.check_location(Tracking(kind="mlflow", uri=lasting))
    tracking.check_location(Tracking())


@pytest.mark.parametrize("name", ["pct%20x", "a?b", "a#b", "[x]", "a b", "%", "50%3F", "ö'\"&=;+"])
def test_a_folder_of_any_name_holds_its_database(monkeypatch, tmp_path, database, name):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(sqlite_path(database), "mlflow.db")  # with its tables
    for uri in (None, "sqlite:///mlflow.db", "sqlite:///./mlflow.db?timeout=5"):
        client = connect(tracking_uri(Tracking(kind="mlflow", uri=uri)))
        run = client.create_run(experiment_id(client, "mine"))
        client.log_text(run.info.run_id, "hello", "note.txt")
        assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["note.txt"]
        assert (folder / "mlartifacts" / "mine" / run.info.run_id / "artifacts" / "note.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "mlartifacts"}


@pytest.mark.slow
def test_a_database_is_created_in_a_folder_of_any_name(monkeypatch, tmp_path):
    folder = tmp_path / "pct%20x a?b#c[d]"
    folder.mkdir()
    monkeypatch.chdir(folder)
    uri = tracking.resolved(Tracking(kind="mlflow")).uri
    assert (folder / "mlflow.db").stat().st_size > 0
    assert sqlite_path(uri) == folder / "mlflow.db"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["..", ".", " .. ", "a\nb", "a\x00b", "\x1b[31m"])
def test_an_experiment_name_that_is_not_a_folder_name_is_refused(name):
    with pytest.raises(ConfigError, match=r"tracking\.experiment"):
        build(Config, {"tracking": {"experiment": name}})


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "a\\b"])
def test_beside_a_database_an_experiment_name_has_no_slash(name):
    with pytest.raises(ConfigError, match="slash"):
        tracking.check_location(Tracking(kind="mlflow", experiment=name))
    tracking.check_location(Tracking(kind="mlflow", experiment=name, uri="http://h:5000"))  # as on Databricks


@pytest.mark.parametrize(
    "section",
    [{"register_as": "a/b"}, {"register_as": "a:b"}, {"register_as": ".."}, {"register_as": "a\nb"}]
    + [{"tags": {name: "x"}} for name in ("a*", "", "a//b", "../b", "/a", "x" * 251, "a\nb")],
)
def test_a_name_that_mlflow_refuses_is_refused_before_training(section):
    with pytest.raises(ConfigError, match=r"tracking\.(register_as|tags)"):
        build(Config, {"tracking": section})


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / ".mlflow.db.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / ".tracking.claim").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"), locked(tmp_path):
        pass
    assert target.read_text() == "precious"


def test_a_database_that_another_process_locks_is_waited_for_with_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_LOCK_TIMEOUT", 0.2)
    with (tmp_path / ".mlflow.db.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TrackingError, match="another process has locked"):
            connect(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.slow
def test_a_database_whose_creation_was_interrupted_is_created_again(monkeypatch, tmp_path, database):
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

    def creating(client, **_):  # in MLflow's place, which takes seconds
        shutil.copy(sqlite_path(database), client.tracking_uri.removeprefix("sqlite:///"))

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "search_experiments", creating)
        client = connect(uri)
    assert "Default" in [experiment.name for experiment in client.search_experiments()]
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


@pytest.mark.long
def test_processes_that_start_at_once_create_a_database_and_experiment_once(python, tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    done = python(FOUR, uri)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(uri)
    assert len(client.search_runs([client.get_experiment_by_name("four").experiment_id])) == 4


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["file:///nowhere", "nonsense://host", "sqlite:////proc/x/mlflow.db"])
def test_an_impossible_location_is_a_warning_and_the_run_finishes(tiny, tmp_path, capsys, uri):
    tracked_run(tiny("training.epochs=1", f"tracking={{kind: mlflow, uri: '{uri}'}}"), tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow has not received all")
    assert line.endswith(f"glr-dist sync {tmp_path / 'run'}")
    assert (tmp_path / "run" / "summary.json").exists()
