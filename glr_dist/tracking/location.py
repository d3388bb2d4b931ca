"""The URI of the server or database that tracks runs. Imports no MLflow."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from glr_dist.config import Tracking
from glr_dist.errors import without_credentials

SQLITE = "sqlite:///"


def tracking_uri(tracking: Tracking, known: str | None = None) -> str:
    """Returns the URI of the server or database of a configuration, with credentials and with an absolute path.

    The first of `tracking.uri`, $MLFLOW_TRACKING_URI, `known` and the file `mlflow.db` in the working directory.

    Args:
        tracking: the section `tracking`.
        known: where the run was tracked before.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or known or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return with_credentials(uri)


def with_credentials(uri: str) -> str:
    """Returns $MLFLOW_TRACKING_URI with its credentials if it names the same server as `uri`, else `uri`."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    return named if without_credentials(named) == uri else uri


def resolved(tracking: Tracking) -> Tracking:
    """Returns the section with its absolute URI, and creates a missing SQLite database.

    For a caller that starts several runs: they may have other working directories, and start at the same time.
    """
    if tracking.kind == "none":
        return tracking
    from glr_dist.tracking.server import connect  # MLflow takes seconds to import

    uri = tracking_uri(tracking)
    if uri.startswith(SQLITE):
        with suppress(Exception):  # the runs report it
            connect(uri)
    return tracking.model_copy(update={"uri": uri})
