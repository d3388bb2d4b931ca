"""The parent run of a search, under which MLflow nests the trials."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glr_dist.config import Tracking
from glr_dist.tracking.location import is_tracked, tracking_uri
from glr_dist.tracking.messages import reason_of, warn
from glr_dist.tracking.provenance import provenance
from glr_dist.tracking.status import final_status

if TYPE_CHECKING:
    from mlflow import MlflowClient


class NoParent:
    """Stands for the parent run if nothing is tracked or the server cannot be reached."""

    run_id = None

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Does nothing."""


class Parent:
    """A parent run on a server.

    Args:
        client: the client of the server.
        run_id: the id of the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Uploads the results of the search; prints a warning instead of raising."""
        from glr_dist.tracking.metric_names import valid_names

        try:
            names = valid_names(metrics)
            for name, value in metrics.items():
                self._client.log_metric(self.run_id, names[name], value)
            for file in files:
                self._client.log_artifact(self.run_id, str(file))
        except Exception as error:
            warn(f"MLflow has not received all results of the search ({reason_of(error)})")

    def end(self, error: type[BaseException] | None) -> None:
        """Sets the final status of the run; `error` is the exception that ended the search, if any."""
        status, early = final_status(error)
        try:
            self._client.set_tag(self.run_id, "stopped_early", str(early).lower())
            self._client.set_terminated(self.run_id, status)
        except Exception as reason:
            warn(f"MLflow has not received the end of the search ({reason_of(reason)})")


@contextmanager
def parent_run(
    tracking: Tracking,
    folder: Path,
    params: Mapping[str, Any],
    run_id: str | None = None,
    command: str = "glr-dist tune",
) -> Iterator[Parent | NoParent]:
    """Opens the parent run of a search; trials refer to it by the tag `mlflow.parentRunId`.

    Waits some seconds for a server that does not answer, then yields a `NoParent`.

    Args:
        tracking: the resolved section `tracking`.
        folder: the folder of the search; the run has its name.
        params: the parameters, as nested mappings.
        run_id: id of the run to continue, if any.
        command: the command that runs it.
    """
    if not is_tracked(tracking):
        yield NoParent()
        return
    parent = _open(tracking, folder, params, run_id, command)
    try:
        yield parent
    finally:
        if isinstance(parent, Parent):
            parent.end(sys.exc_info()[0])


def _open(
    tracking: Tracking, folder: Path, params: Mapping[str, Any], run_id: str | None, command: str
) -> Parent | NoParent:
    try:
        from glr_dist.tracking.server import connect, experiment_id, log_params

        client = connect(tracking_uri(tracking))
        if run_id is not None:
            client.update_run(run_id, "RUNNING")
            return Parent(client, run_id)
        tags = {**provenance(folder), "mlflow.source.name": command, **tracking.tags}
        run = client.create_run(experiment_id(client, tracking.experiment), tags=tags, run_name=folder.name)
        log_params(client, run.info.run_id, params)
    except Exception as error:
        warn(f"MLflow has no parent run for the trials ({reason_of(error)})")
        return NoParent()
    return Parent(client, run.info.run_id)
