"""Uploads after the end of a run: what MLflow is missing, a robustness report, the trials of a search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from glr_dist.config import Tracking
from glr_dist.errors import ConfigError, TrackingError, without_credentials
from glr_dist.runs import RunFolder
from glr_dist.tracking.location import with_credentials
from glr_dist.tracking.messages import reason_of, warn, warn_incomplete
from glr_dist.tracking.state import FILE, State, locked
from glr_dist.tracking.status import final_status

_PATIENCE = 5.0  # seconds for the processes that still track a run


def sync(folder: Path) -> State:
    """Uploads what MLflow is missing of a finished run; uploads nothing twice.

    Credentials come from $MLFLOW_TRACKING_URI, or from $MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD.

    Args:
        folder: the run's folder.

    Returns:
        The state of the run's tracking.

    Raises:
        ConfigError: the folder does not hold a tracked run, or the run has not ended.
        TrackingError: the server cannot be reached or refuses something.
    """
    try:
        return _upload(folder)
    except ConfigError:
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
    """Uploads what MLflow is missing of the trials of a search; prints a warning instead of raising.

    Trials end with the processes of the search, often before everything is uploaded.

    Args:
        tracking: the resolved section `tracking` of the search.
        folders: the trials' folders; those that are not tracked are skipped.
        parent: id of the run that the trials are nested under, if any.
    """
    if tracking.kind == "none":
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


def _upload(folder: Path, uri: str | None = None, tags: Mapping[str, str] | None = None) -> State:
    with locked(folder) as acquired:
        if not acquired:
            raise ConfigError(f"{folder}: the run has not ended and is tracked by its process; sync it after its end")
        state = State.read(folder)
        if tags and not tags.items() <= state.tags.items():
            state.change(tags={**state.tags, **tags})
        if state.end is None:  # its process was killed before it could record the end
            state.record_end(*final_status(None if RunFolder(folder).summary_file.exists() else KeyboardInterrupt))
        from glr_dist.tracking.uploader import Uploader  # MLflow takes seconds to import

        same = uri is not None and without_credentials(uri) == state.uri
        Uploader(folder, state, uri if uri and same else with_credentials(state.uri)).upload()
        return state
