"""A run over others: the parent of a search."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glr_dist import config
from glr_dist.tracking.provenance import provenance
from glr_dist.tracking.state import ended_with, reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


class NoParent:
    """Where nothing is tracked, or the server is out of reach."""

    run_id = None

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Nothing to be done."""


class Parent:
    """A run on a server.

    Args:
        client: of the server.
        run_id: of the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Sends the results; a line on stderr says if that cannot be done."""
        from glr_dist.tracking.names import allowed

        try:
            for name, value in metrics.items():
                self._client.log_metric(self.run_id, allowed(name), value)
            for file in files:
                self._client.log_artifact(self.run_id, str(file))
        except Exception as error:
            _warn("has not received all results", error)

    def end(self, error: type[BaseException] | None) -> None:
        """Sets the status."""
        status, early = ended_with(error)
        try:
            self._client.set_tag(self.run_id, "stopped_early", str(early).lower())
            self._client.set_terminated(self.run_id, status)
        except Exception as reason:
            _warn("does not know that the parent run has ended", reason)


@contextmanager
def opened(
    tracking: config.Tracking, folder: Path, params: Mapping[str, Any], run_id: str | None
) -> Iterator[Parent | NoParent]:
    """See `parent_run`."""
    parent = _opened(tracking, folder, params, run_id)
    try:
        yield parent
    finally:
        if isinstance(parent, Parent):
            parent.end(sys.exc_info()[0])


def _opened(
    tracking: config.Tracking, folder: Path, params: Mapping[str, Any], run_id: str | None
) -> Parent | NoParent:
    try:
        from glr_dist.tracking.server import connect, experiment_of, log_params, uri_of

        client = connect(uri_of(tracking))
        if run_id is not None:
            client.update_run(run_id, "RUNNING")
            return Parent(client, run_id)
        tags = {**provenance(folder), "mlflow.source.name": "glr-dist tune", **tracking.tags}
        run = client.create_run(experiment_of(client, tracking.experiment), tags=tags, run_name=folder.name)
        log_params(client, run.info.run_id, params)
    except Exception as error:
        _warn("has no parent run", error)
        return NoParent()
    return Parent(client, run.info.run_id)


def _warn(what: str, error: Exception) -> None:
    print(f"warning: MLflow {what} ({reason_of(error)})", file=sys.stderr)
