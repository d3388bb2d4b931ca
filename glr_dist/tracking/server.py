"""The connection to an MLflow server or database: short timeouts, and a SQLite file that is created once."""

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

from glr_dist.config import flat
from glr_dist.errors import without_credentials
from glr_dist.tracking.location import SQLITE
from glr_dist.tracking.metric_names import valid_name

# MLflow reads these when it is imported, or at each call. By default, one call to a server that is down takes four
# minutes.
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

for _name in ("mlflow", "alembic", "urllib3.connectionpool"):  # a run reports errors itself, in one line
    logging.getLogger(_name).setLevel(logging.ERROR)

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on training runs


def connect(uri: str) -> MlflowClient:
    """Returns a client. The first caller creates the tables of a SQLite file that is missing or of an older MLflow.

    Raises:
        MlflowException, OSError: the file cannot be opened.
    """
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not path.exists():
            # Created elsewhere and then moved: MLflow cannot open a file whose creation was interrupted. And it does
            # not create tables under a path twice in a process.
            with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
                created = Path(folder) / path.name
                MlflowClient(f"{SQLITE}{created}").search_experiments(max_results=1)
                created.rename(path)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client


def experiment_id(client: MlflowClient, name: str) -> str:
    """Returns the id of an experiment, and creates a missing one.

    The artifacts of a SQLite database are in `mlartifacts` beside it.

    Raises:
        MlflowException: the server cannot be reached, or the experiment was deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        artifacts = None
        if client.tracking_uri.startswith(SQLITE):
            path = Path(client.tracking_uri.removeprefix(SQLITE))
            artifacts = (path.parent / "mlartifacts" / quote(name, safe="")).as_uri()
        try:
            return str(client.create_experiment(name, artifacts, _EXPERIMENT_TAGS))
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # another run may have created it meanwhile
            if experiment is None:
                raise error
    if experiment.lifecycle_stage != "active":
        raise MlflowException(f"the experiment {name} was deleted; restore it, or name another one")
    return str(experiment.experiment_id)


def is_unreachable(error: Exception) -> bool:
    """Returns whether no other request would succeed now either."""
    return not isinstance(error, MlflowException) or error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


def log_params(client: MlflowClient, run_id: str, config: Mapping[str, Any]) -> None:
    """Uploads a nested configuration as flat parameters; long texts are cut to the length that MLflow accepts."""
    params = [Param(valid_name(k), _text(v)[:MAX_PARAM_VAL_LENGTH]) for k, v in flat(config).items()]
    for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + MAX_PARAMS_TAGS_PER_BATCH])


def log_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Uploads tags of a run."""
    for start in range(0, len(tags), MAX_PARAMS_TAGS_PER_BATCH):
        batch = list(tags.items())[start : start + MAX_PARAMS_TAGS_PER_BATCH]
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in batch])


def _text(value: Any) -> str:
    return without_credentials(value if isinstance(value, str) else json.dumps(value))
