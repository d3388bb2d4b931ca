"""The connection to an MLflow server or database: short timeouts, and a SQLite file that is created once."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import quote

from glr_dist.config import flat
from glr_dist.errors import TrackingError
from glr_dist.redaction import remember
from glr_dist.tracking.location import SQLITE, sqlite_path, sqlite_uri
from glr_dist.tracking.metric_names import valid_names
from glr_dist.uris import without_credentials

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
from mlflow.utils import request_utils  # noqa: E402
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH  # noqa: E402

for _name in ("mlflow", "alembic", "urllib3.connectionpool"):  # a run reports errors itself, in one line
    logging.getLogger(_name).setLevel(logging.ERROR)

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on training runs
_LONGEST_ANSWER = 64 * 2**20  # bytes; longer answers are not read
_LOCK_TIMEOUT = 60.0  # seconds to wait for other processes that open the same database

T = TypeVar("T")


def _read_limited(response: Any, *_: Any, **options: Any) -> None:
    """Reads an answer up to the limit; a response hook for `requests`, called before the body is read.

    Raises:
        TrackingError: the answer is longer.
    """
    if options.get("stream"):  # a download, read in pieces by MLflow
        return
    body = bytearray()
    for piece in response.iter_content(2**16):
        body += piece
        if len(body) > _LONGEST_ANSWER:
            response.close()
            raise TrackingError(f"the server sends an answer of more than {_LONGEST_ANSWER // 2**20} MiB")
    response._content = bytes(body)


def _limit_answers() -> None:
    """Limits the size of answers in all sessions that MLflow opens; MLflow has no setting for this."""
    session_of: Callable[..., Any] = request_utils._get_request_session

    def limited(*args: Any, **kwargs: Any) -> Any:
        session = session_of(*args, **kwargs)
        if _read_limited not in session.hooks["response"]:
            session.hooks["response"].append(_read_limited)
        return session

    request_utils._get_request_session = limited


_limit_answers()


def connect(uri: str, *, create: bool = True) -> MlflowClient:
    """Returns a client. The first caller creates the tables of a SQLite file that is missing or of an older MLflow.

    Args:
        uri: URI of the server or database, with credentials.
        create: whether to create a missing SQLite file.

    Raises:
        TrackingError: the SQLite file is missing and must not be created, or another process locks it for too long.
        MlflowException, OSError: the file cannot be opened.
    """
    remember(uri)
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    path = sqlite_path(uri)
    if not create and not path.exists():
        raise TrackingError(f"the database {path} does not exist; put it back, or name another place by --uri")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            # Created elsewhere and then moved: MLflow cannot open a file whose creation was interrupted. And it does
            # not create tables under a path twice in a process.
            with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
                created = Path(folder) / path.name
                MlflowClient(_client_uri(sqlite_uri(created))).search_experiments(max_results=1)
                created.rename(path)
        client = MlflowClient(_client_uri(uri))
        client.search_experiments(max_results=1)
        return client


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file, which the system releases when the process ends.

    Raises:
        TrackingError: another process holds it for too long.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrackingError(f"another process has locked {path} for {_LOCK_TIMEOUT:.0f} s") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def experiment_id(client: MlflowClient, name: str) -> str:
    """Returns the id of an experiment, and creates a missing one.

    The artifacts of a SQLite database are in `mlartifacts` beside it.

    Raises:
        MlflowException: the server cannot be reached, or the experiment was deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        artifacts = None
        if client.tracking_uri.startswith("sqlite"):
            artifacts = (sqlite_path(client.tracking_uri).parent / "mlartifacts" / quote(name, safe="")).as_uri()
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
    """Returns whether any other request would fail now, too."""
    return not isinstance(error, MlflowException) or error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


def in_batches(items: Sequence[T], size: int, upload: Callable[[list[T]], object]) -> None:
    """Uploads items in batches; if a batch is refused, each of its items alone.

    Raises:
        Exception: the first error. Everything that the server accepts is uploaded nevertheless, unless the server
            cannot be reached.
    """
    first: Exception | None = None
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        try:
            upload(batch)
        except MlflowException as error:
            if is_unreachable(error):
                raise
            if len(batch) == 1:
                first = first or error
                continue
            try:
                in_batches(batch, 1, upload)
            except MlflowException as reason:
                if is_unreachable(reason):
                    raise
                first = first or reason
    if first is not None:
        raise first


def log_params(client: MlflowClient, run_id: str, config: Mapping[str, Any]) -> None:
    """Uploads a nested configuration as flat parameters; long texts are cut to the length that MLflow accepts.

    A parameter that the run has already keeps its first value, since MLflow changes none: the number of epochs of a run
    that was resumed with more of them.

    Raises:
        Exception: as `in_batches`.
    """
    values = flat({key: value for key, value in config.items() if key != "diagnose"})  # not settings of a training run
    names = valid_names(values)
    known = client.get_run(run_id).data.params
    params = [
        Param(names[key], _text(value)[:MAX_PARAM_VAL_LENGTH])
        for key, value in values.items()
        if names[key] not in known
    ]
    in_batches(params, MAX_PARAMS_TAGS_PER_BATCH, lambda batch: client.log_batch(run_id, params=batch))


def log_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Uploads tags of a run.

    Raises:
        Exception: as `in_batches`.
    """
    entities = [RunTag(key, without_credentials(value)) for key, value in tags.items()]
    in_batches(entities, MAX_PARAMS_TAGS_PER_BATCH, lambda batch: client.log_batch(run_id, tags=batch))


def address_of(uri: str, experiment: str, run_id: str) -> str:
    """Returns the web address of a run on a server, in the view of training runs."""
    server = without_credentials(uri).rstrip("/")
    return f"{server}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def _client_uri(uri: str) -> str:
    """Returns the URI for MLflow, with the name of the driver if the path of a SQLite database has escapes.

    Without the driver, MLflow creates a folder whose name is the escaped path.
    """
    return uri.replace(SQLITE, "sqlite+pysqlite:///", 1) if "%" in uri else uri


def _text(value: Any) -> str:
    return without_credentials(value if isinstance(value, str) else json.dumps(value))
