"""Comparison of what a run's folder records as uploaded with what the server has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from glr_dist.config import flat, read
from glr_dist.robustness.certificates.files import certificate_names, read_certificates
from glr_dist.robustness.report_files import report_names
from glr_dist.runs import RunFolder
from glr_dist.tracking.metric_names import metrics_of
from glr_dist.tracking.state import State

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def forget_missing(client: MlflowClient, state: State) -> None:
    """Removes from the state what the server does not have, so that it is uploaded again.

    A database may have been replaced by an older copy, a run or its artifacts may have been deleted.

    Args:
        client: the client of the server.
        state: the state of the run's tracking.

    Raises:
        MlflowException: the server cannot be reached.
    """
    if state.run_id is None:
        return
    run = _run(client, state.run_id)
    if run is None:
        state.forget_run()
        return
    missing = _missing_files(client, state) | _missing_lines(client, run, state)
    if not state.tags.keys() <= run.data.tags.keys():
        missing.add("tags")
    if len(run.data.params) < len(flat(_config(state.folder))):
        missing.add("params")
    if run.inputs is None or not run.inputs.dataset_inputs:
        missing.add("dataset")
    if state.end is not None and run.info.status != state.end["status"]:
        missing.add("status")
    if state.model_id is not None and not _has_model(client, state):
        missing.add("model")
    if RunFolder(state.folder).summary_file.exists() and "test/accuracy" not in run.data.metrics:
        missing.add("summary")
    missing |= _missing_reports(run, state) | _missing_certificates(run, state)
    state.forget(missing)


def _run(client: MlflowClient, run_id: str) -> Run | None:
    """Returns the run, None if it was deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _config(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in read(RunFolder(folder).config_file).items() if key != "diagnose"}


def _missing_files(client: MlflowClient, state: State) -> set[str]:
    """Returns the uploaded files that are not among the run's artifacts."""
    assert state.run_id is not None
    inner = ("robustness", "certificates")
    folders = (state.folder, *(state.folder / name for name in inner))
    files = {name for name in state.sent if any((folder / name).is_file() for folder in folders)}
    found = {artifact.path for artifact in client.list_artifacts(state.run_id)}
    for name in found.intersection(inner):
        found |= {artifact.path.rpartition("/")[2] for artifact in client.list_artifacts(state.run_id, name)}
    return files - found


def _missing_reports(run: Run, state: State) -> set[str]:
    """Returns the names of uploaded reports whose results are not among the run's metrics."""
    names = {name for name in report_names(state.folder) if f"report {name}" in state.sent}
    return {f"report {name}" for name in names if f"clean/{name}/accuracy" not in run.data.metrics}


def _missing_certificates(run: Run, state: State) -> set[str]:
    """Returns the names of uploaded certificates whose results are not among the run's metrics."""
    names = {name for name in certificate_names(state.folder) if f"certificates {name}" in state.sent}
    return {
        f"certificates {name}"
        for name in names
        if not read_certificates(state.folder, name).metrics().keys() <= run.data.metrics.keys()
    }


def _missing_lines(client: MlflowClient, run: Run, state: State) -> set[str]:
    """Returns the files of which an uploaded line is not among the run's metrics."""
    missing = set()
    for file, last in state.lines.items():
        lines = [json.loads(line) for line in (state.folder / file).read_text().splitlines()[:last] if line]
        steps = {line.get("epoch", number) for number, line in enumerate(lines, 1)}
        for name in metrics_of(lines[-1]) if lines else ():
            known = {point.step for point in client.get_metric_history(run.info.run_id, name)}
            if not steps <= known:
                missing.add(file)
            break  # the metrics of a line arrive together
    return missing


def _has_model(client: MlflowClient, state: State) -> bool:
    assert state.model_id is not None
    try:
        model = client.get_logged_model(state.model_id)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return False
        raise
    return str(model.status) == "READY"
