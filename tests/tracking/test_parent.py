"""A parent run, and uploads that its trials could not finish."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracking.uploaded import assert_complete, tracked_run

from glr_dist import tracking
from glr_dist.config import Tracking
from glr_dist.tracking.state import State


@pytest.mark.slow
def test_a_parent_and_its_children(database, tiny, tmp_path):
    place = Tracking(kind="mlflow", uri=database, experiment="search")
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


@pytest.mark.slow
def test_trials_that_could_not_be_uploaded_are_uploaded_later_under_a_parent(database, tiny, tmp_path, capsys):
    away, folders = tmp_path / "away", [tmp_path / "0", tmp_path / "1", tmp_path / "untracked"]
    away.touch()
    place = Tracking(kind="mlflow", uri=f"sqlite:///{away}/mlflow.db", experiment="late")
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
