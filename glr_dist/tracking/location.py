"""The URI of the server or database that tracks runs, and the servers that may receive credentials."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from glr_dist.config import Tracking
from glr_dist.errors import ConfigError
from glr_dist.execution.address import in_ray_job
from glr_dist.uris import server_of, without_credentials

SQLITE = "sqlite:///"
_DEFAULT = f"{SQLITE}mlflow.db"
# MLflow sends these to every server that it connects to.
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH")
_CREDENTIALS_FILE = Path("~/.mlflow/credentials")


def is_tracked(tracking: Tracking) -> bool:
    """Returns whether runs are tracked; `auto` tracks them if tracking.uri or $MLFLOW_TRACKING_URI is set."""
    return tracking.kind == "mlflow" or (tracking.kind == "auto" and bool(tracking.uri or environment_uri()))


def environment_uri() -> str | None:
    """Returns $MLFLOW_TRACKING_URI; None if it is not set or empty."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def tracking_uri(tracking: Tracking, known: str | None = None) -> str:
    """Returns the URI of the server or database of a configuration, with credentials and with an absolute path.

    The first of `tracking.uri`, $MLFLOW_TRACKING_URI, `known` and the file `mlflow.db` in the working directory.

    Args:
        tracking: the section `tracking`.
        known: where the run was tracked before.

    Raises:
        ConfigError: a relative database in a Ray job, or a known server that would receive credentials of another one.
    """
    named = tracking.uri or environment_uri()
    if named is None and known is not None:
        check_credentials(known)
    check_location(tracking, known)
    return with_credentials(absolute_uri(named or known or _DEFAULT))


def check_location(tracking: Tracking, known: str | None = None) -> None:
    """Checks before a run starts that its tracking will outlive it.

    Raises:
        ConfigError: a Ray job would write the database into its temporary working directory; or the experiment's name
            cannot name a folder beside a database.
    """
    if not is_tracked(tracking):
        return
    uri = tracking.uri or environment_uri() or known or _DEFAULT
    if not uri.startswith("sqlite"):
        return
    if in_ray_job() and not sqlite_path(uri).is_absolute():
        raise ConfigError(
            "tracking.uri: a Ray job runs in a temporary copy of its working directory; give a server, or a database "
            "that outlives the job, as in tracking.uri=sqlite:////shared/mlflow.db"
        )
    if "/" in tracking.experiment or "\\" in tracking.experiment:
        raise ConfigError(
            f"tracking.experiment: {tracking.experiment!r} must not contain a slash: "
            "the artifacts of a database are in a folder of this name"
        )


def absolute_uri(uri: str) -> str:
    """Returns the URI of a SQLite database with an absolute path, any other URI unchanged."""
    if not uri.startswith(SQLITE) or (path := sqlite_path(uri)).is_absolute():
        return uri
    _, mark, query = uri.partition("?")
    return sqlite_uri(path.absolute()) + mark + query


def sqlite_uri(path: Path) -> str:
    """Returns the URI of a SQLite database, in which `%` is an escape and `?` begins the query."""
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def sqlite_path(uri: str) -> Path:
    """Returns the file of a SQLite database."""
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]))


def same_location(one: str, other: str) -> bool:
    """Returns whether two URIs name the same server and path, whatever their credentials."""
    one, other = (without_credentials(uri).rstrip("/") for uri in (one, other))
    return one == other or (server_of(one) == server_of(other) and _path(one) == _path(other))


def with_credentials(uri: str) -> str:
    """Returns $MLFLOW_TRACKING_URI with its credentials if it names the same server and path as `uri`, else `uri`."""
    named = environment_uri()
    if named is None or without_credentials(uri) != uri or not same_location(named, uri):
        return uri
    return named


def check_credentials(uri: str) -> None:
    """Checks that a server that only a run's folder names would not receive credentials meant for another server.

    Raises:
        ConfigError: MLflow would send credentials of the environment there.
    """
    if not uri.startswith(("http:", "https:")):
        return
    named = environment_uri()
    if named is not None and server_of(named) == server_of(uri):
        return
    variables = [name for name in _CREDENTIALS if os.environ.get(name)]
    with suppress(RuntimeError):  # a user without a home
        variables += [str(_CREDENTIALS_FILE)] * _CREDENTIALS_FILE.expanduser().exists()
    if variables:
        raise ConfigError(
            f"tracking: the run's folder names the server {without_credentials(uri)}, but {variables[0]} may be meant "
            "for another one; name the server: glr-dist sync RUN_DIR --uri URI, or set MLFLOW_TRACKING_URI"
        )


def resolved(tracking: Tracking) -> Tracking:
    """Returns the section with `auto` decided and the absolute URI, and creates a missing SQLite database.

    For a caller that starts several runs: they may have other working directories, and start at the same time.

    Raises:
        ConfigError: as `check_location`.
    """
    if not is_tracked(tracking):
        return tracking.model_copy(update={"kind": "none"})
    uri = tracking_uri(tracking)
    if uri.startswith(SQLITE):
        from glr_dist.tracking.server import connect  # MLflow takes seconds to import

        with suppress(Exception):  # the runs report it
            connect(uri)
    return tracking.model_copy(update={"kind": "mlflow", "uri": uri})


def _path(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[2].rstrip("/")
