"""Uploads after the end of a run: what MLflow is missing, a robustness report, the trials of a search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from glr_dist.config import Tracking
from glr_dist.errors import ConfigError, TrackingError, UserError
from glr_dist.runs import RunFolder
from glr_dist.tracking.location import (
    absolute_uri,
    check_credentials,
    environment_uri,
    is_tracked,
    same_location,
    with_credentials,
)
from glr_dist.tracking.messages import reason_of, warn, warn_incomplete
from glr_dist.tracking.state import FILE, State, locked
from glr_dist.tracking.status import final_status

_PATIENCE = 5.0  # seconds for the processes that still track a run


def sync(folder: Path, uri: str | None = None) -> State:
    """Uploads what MLflow is missing from a finished run; uploads nothing twice.

    Asks the server what it has: a run that was deleted there is created again.

    Args:
        folder: the run's folder.
        uri: the server to upload to; by default $MLFLOW_TRACKING_URI, else the server of the run.

    Returns:
        The state of the run's tracking.

    Raises:
        ConfigError: the folder does not hold a tracked run, the run has not ended, or the environment's credentials
            are not meant for the run's server.
        TrackingError: the server cannot be reached or refuses something.
    """
    try:
        return _upload(folder, uri or environment_uri(), audit=True)
    except UserError:
        raise
    except Exception as error:
        raise TrackingError(f"{folder}: MLflow has not accepted everything ({reason_of(error)})") from None


def send_report(folder: Path) -> None:
    """Uploads the robustness report of a tracked run; prints a warning instead of raising."""
    if not (folder / FILE).exists():
        return
    try:
        _upload(folder)
    except Exception as error:
        warn_incomplete(folder, error)


def sync_children(tracking: Tracking, folders: Sequence[Path], parent: str | None) -> None:
    """Uploads what MLflow is missing from the trials of a search; prints a warning instead of raising.

    Trials end with the processes of the search, often before everything is uploaded.

    Args:
        tracking: the resolved section `tracking` of the search.
        folders: the trials' folders; those that are not tracked are skipped.
        parent: id of the run that the trials are nested under, if any.
    """
    if not is_tracked(tracking):
        return
    from glr_dist.tracking.server import is_unreachable  # MLflow takes seconds to import

    deadline, incomplete, first = time.monotonic() + _PATIENCE, 0, None
    for folder in folders:
        if not (folder / FILE).exists():
            continue
        try:
            if first is not None and is_unreachable(first):
                raise first
            while True:
                try:
                    _upload(folder, tracking.uri, {"mlflow.parentRunId": parent} if parent else {})
                    break
                except ConfigError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        except Exception as error:
            incomplete, first = incomplete + 1, first or error
    if first is not None:
        warn(
            f"MLflow has not received all of {incomplete} trials ({reason_of(first)}); "
            "the same command with --resume sends the rest"
        )


def _upload(
    folder: Path, uri: str | None = None, tags: Mapping[str, str] | None = None, *, audit: bool = False
) -> State:
    """Uploads what is missing.

    Args:
        folder: the run's folder.
        uri: the server to upload to; by default the server of the run.
        tags: further tags of the run.
        audit: whether to ask the server what it has, instead of trusting the folder.
    """
    with locked(folder) as acquired:
        if not acquired:
            raise ConfigError(f"{folder}: the run has not ended and is tracked by its process; sync it after its end")
        state = State.read(folder)
        if uri is None:
            check_credentials(state.uri)
            uri = state.uri
        uri = with_credentials(absolute_uri(uri))
        if not same_location(uri, state.uri):
            state.move(uri)
        if tags and not tags.items() <= state.tags.items():
            state.change(tags={**state.tags, **tags})
        if state.end is None:  # its process was killed before it could record the end
            state.record_end(*final_status(None if RunFolder(folder).summary_file.exists() else KeyboardInterrupt))
        from glr_dist.tracking.uploader import Uploader  # MLflow takes seconds to import

        # A database that had the run and is gone was moved: an empty one in its place would hide that.
        uploader = Uploader(folder, state, uri, create=state.run_id is None)
        if audit:
            uploader.audit()
        uploader.upload()
        return state
