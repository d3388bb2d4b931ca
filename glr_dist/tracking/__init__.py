"""Runs followed in MLflow, from outside: `metrics.jsonl` is the truth, and no server ever holds a run up.

A thread reads what the trainer has written into the run's folder and sends it, for as long as it takes; `tracking.json`
beside it remembers what has arrived, so that a resumed run, or `glr-dist sync`, goes on from there. MLflow is imported
where something is tracked, and in this package alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glr_dist import config
from glr_dist.config import Config
from glr_dist.errors import ConfigError, TrackingError, without_credentials
from glr_dist.tracking.follower import following
from glr_dist.tracking.parent import NoParent, Parent, opened
from glr_dist.tracking.state import FILE, Paused, State, ended_with, held, reason_of, warn, with_credentials

__all__ = ["Paused", "parent_run", "resolved", "send_report", "sync", "sync_children", "tracked"]

_PATIENCE = 5.0  # seconds for processes that follow a run and are being ended


@contextmanager
def tracked(settings: Config, out: Path) -> Iterator[None]:
    """Follows a run in MLflow, if its configuration asks for it; goes around `Trainer.run`.

    A mistake or absence of the server ends, blocks or slows nothing: what has not arrived in the end is left to `sync`,
    which a line on stderr says. The run ends there as FINISHED, as KILLED after a `KeyboardInterrupt`, as FINISHED
    with the tag `stopped_early` after a `SystemExit` (by which Ray Tune stops a trial), else as FAILED. After `Paused`,
    which is one, a server that is away is not waited for, and one that is slow for a second at most.

    Args:
        settings: the configuration.
        out: the run's folder, which the trainer has opened already.
    """
    if settings.tracking.kind == "none":
        yield
        return
    with following(settings, out):
        yield


def sync(folder: Path) -> State:
    """Sends what the server lacks of an ended run; nothing arrives twice.

    Credentials come from $MLFLOW_TRACKING_URI, or $MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD.

    Args:
        folder: of the run.

    Returns:
        What has arrived, and where.

    Raises:
        ConfigError: the folder is of no tracked run, or of one that goes on.
        TrackingError: the server is out of reach, or refuses something.
    """
    try:
        return _caught_up(folder)
    except ConfigError:
        raise
    except Exception as error:
        raise TrackingError(f"{folder}: MLflow has not taken all ({reason_of(error)})") from None


def send_report(folder: Path) -> None:
    """Sends a run's robustness report to its MLflow run, if it was tracked; never fails, a line on stderr tells."""
    if not (folder / FILE).exists():
        return
    try:
        _caught_up(folder)
    except Exception as error:
        warn(folder, error)


def sync_children(tracking: config.Tracking, folders: Sequence[Path], parent: str | None) -> None:
    """Sends what the server lacks of the runs of a search, whose processes end with it; never fails, a line tells.

    Args:
        tracking: where, resolved.
        folders: of the runs; those that were not tracked are passed over.
        parent: the run that they are put under, if there is one.
    """
    if tracking.kind == "none":
        return
    from glr_dist.tracking.server import away

    deadline, lacking, first = time.monotonic() + _PATIENCE, 0, None
    for folder in folders:
        if not (folder / FILE).exists():
            continue
        try:
            if first is not None and away(first):
                raise first
            while True:
                try:
                    _caught_up(folder, tracking.uri, {"mlflow.parentRunId": parent} if parent else {})
                    break
                except ConfigError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        except Exception as error:
            lacking, first = lacking + 1, first or error
    if first is not None:
        print(
            f"warning: MLflow has not received all of {lacking} trials ({reason_of(first)}); "
            "the same command with --resume sends the rest",
            file=sys.stderr,
        )


def _caught_up(folder: Path, uri: str | None = None, tags: Mapping[str, str] | None = None) -> State:
    with held(folder) as mine:
        if not mine:
            raise ConfigError(f"{folder}: the run goes on, and is followed; sync it when it has ended")
        state = State.read(folder)
        if tags and not tags.items() <= state.tags.items():
            state.change(tags={**state.tags, **tags})
        if state.end is None:  # its process was killed, and could not say so
            state.ended(*ended_with(None if (folder / "summary.json").exists() else KeyboardInterrupt))
        from glr_dist.tracking.sender import Sender  # MLflow takes seconds to import

        same = uri is not None and without_credentials(uri) == state.uri
        Sender(folder, state, uri if uri and same else with_credentials(state.uri)).send()
        return state


def resolved(tracking: config.Tracking) -> config.Tracking:
    """The section with the URI that it stands for, absolute; a fresh SQLite file is made here, once.

    For one that starts several runs: they may have other working directories, and begin at the same time.
    """
    if tracking.kind == "none":
        return tracking
    from glr_dist.tracking.server import connect, uri_of

    uri = uri_of(tracking)
    if uri.startswith("sqlite:"):
        with suppress(Exception):  # the runs will say so
            connect(uri)
    return tracking.model_copy(update={"uri": uri})


@contextmanager
def parent_run(
    tracking: config.Tracking, folder: Path, params: Mapping[str, Any], run_id: str | None = None
) -> Iterator[Parent | NoParent]:
    """A run that others are put under, by the tag `mlflow.parentRunId`.

    Waits seconds for a server that does not answer, and then goes on without.

    Args:
        tracking: where.
        folder: of what the run is of; it gives the run its name.
        params: its parameters, nested as they may be.
        run_id: of a run that is continued.
    """
    if tracking.kind == "none":
        yield NoParent()
        return
    with opened(tracking, folder, params, run_id) as parent:
        yield parent
