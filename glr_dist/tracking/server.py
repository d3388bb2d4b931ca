"""The way to an MLflow server or database: settings that let calls fail soon, and a SQLite file that is made once."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from glr_dist import config
from glr_dist.errors import without_credentials
from glr_dist.tracking.names import allowed
from glr_dist.tracking.state import with_credentials

# Read by MLflow when it is imported, or called. By default one call to a server that is down takes four minutes; but
# what a server does not answer within the timeout never arrives.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH  # noqa: E402

for _name in ("mlflow", "alembic", "urllib3.connectionpool"):  # a run says in one line what is wrong
    logging.getLogger(_name).setLevel(logging.ERROR)

_SQLITE = "sqlite:///"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on training runs


def uri_of(tracking: config.Tracking, known: str | None = None) -> str:
    """The URI that a configuration stands for, a file's absolute; with credentials, from there or the environment.

    Args:
        tracking: the configuration.
        known: where the run was followed before, for one that names no place.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or known or f"{_SQLITE}mlflow.db"
    if uri.startswith(_SQLITE):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute())
    return with_credentials(uri)


def connect(uri: str) -> MlflowClient:
    """A client; of a SQLite file that is not there, or of an older MLflow, the first to come makes the tables.

    Raises:
        MlflowException, OSError: the file cannot be opened.
    """
    if not uri.startswith(_SQLITE):
        return MlflowClient(uri)
    path = Path(uri.removeprefix(_SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not path.exists():
            # Whole or not at all: MLflow opens none that was left half made. It remembers places that it has opened.
            with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
                made = Path(folder) / path.name
                MlflowClient(f"{_SQLITE}{made}").search_experiments(max_results=1)
                made.rename(path)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client


def experiment_of(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is created if need be. Beside a SQLite file lie its files, in `mlartifacts`.

    Raises:
        MlflowException: the server is out of reach, or the experiment was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None
        if client.tracking_uri.startswith(_SQLITE):
            path = Path(client.tracking_uri.removeprefix(_SQLITE))
            place = (path.parent / "mlartifacts" / quote(name, safe="")).as_uri()
        try:
            return str(client.create_experiment(name, place, _KIND))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another run may have been faster
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise MlflowException(f"the experiment {name} was deleted; restore it, or name another one")
    return str(found.experiment_id)


def away(error: Exception) -> bool:
    """Whether an error says that nothing else would arrive now either."""
    return not isinstance(error, MlflowException) or error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


def log_params(client: MlflowClient, run_id: str, settings: Mapping[str, Any]) -> None:
    """Settings as flat parameters, texts cut where MLflow does not take more."""
    params = [Param(allowed(k), _text(v)[:MAX_PARAM_VAL_LENGTH]) for k, v in config.flat(settings).items()]
    for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + MAX_PARAMS_TAGS_PER_BATCH])


def log_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Tags of a run."""
    for start in range(0, len(tags), MAX_PARAMS_TAGS_PER_BATCH):
        some = list(tags.items())[start : start + MAX_PARAMS_TAGS_PER_BATCH]
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in some])


def _text(value: Any) -> str:
    return without_credentials(value if isinstance(value, str) else json.dumps(value))
