"""`tracking.json`: where a run is tracked, how it ended, and what has been uploaded. It holds no credentials."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from glr_dist.config import Tracking
from glr_dist.errors import ConfigError, without_credentials
from glr_dist.files import write_atomically
from glr_dist.text import one_line

FILE = "tracking.json"
_LOCK = ".tracking.lock"


@dataclass
class State:
    """The state of a run's tracking. Its methods write every change to the disk.

    Attributes:
        folder: the run's folder.
        uri: URI of the server without credentials.
        experiment: name of the MLflow experiment.
        key: identifies the run on the server before the server has assigned an id, so that it is created only once.
        started: start time in ms since 1970.
        tags: tags of the run.
        register_as: registered model that the network becomes a version of.
        dataset: description of the training set.
        run_id, model_id: assigned by the server.
        lines: last uploaded line of each file; for `metrics.jsonl`, the last uploaded epoch.
        sent: digests of everything else that has been uploaded, by name.
        end: `status`, `stopped_early` and `time` in ms of the run's end; None while it runs.
    """

    folder: Path
    uri: str
    experiment: str
    key: str = field(default_factory=lambda: uuid4().hex)
    started: int = field(default_factory=lambda: int(1000 * time.time()))
    tags: dict[str, str] = field(default_factory=dict)
    register_as: str | None = None
    dataset: dict[str, Any] | None = None
    run_id: str | None = None
    model_id: str | None = None
    lines: dict[str, int] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)
    end: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @classmethod
    def read(cls, folder: Path) -> State:
        """Reads the state from a run's folder.

        Raises:
            ConfigError: the run is not tracked, or the file is damaged.
        """
        try:
            return cls(folder=folder, **json.loads((folder / FILE).read_bytes()))
        except FileNotFoundError:
            raise ConfigError(f"{folder}: was not tracked; train it with tracking.kind=mlflow") from None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{folder / FILE}: cannot be read ({one_line(error)})") from None

    @classmethod
    def begin(cls, folder: Path, tracking: Tracking, uri: str) -> State:
        """Starts a run, or continues it if the folder's state has the same server and experiment."""
        state = cls(folder, without_credentials(uri), tracking.experiment)
        if (folder / FILE).exists():
            known = cls.read(folder)
            if (known.uri, known.experiment) == (state.uri, state.experiment):
                state = known
        state.change(tags={**state.tags, **tracking.tags}, register_as=tracking.register_as, end=None)
        return state

    def change(self, **values: Any) -> None:
        """Sets attributes and writes the file."""
        with self._lock:
            for name, value in values.items():
                setattr(self, name, value)
            fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "folder"}
            write_atomically(self.folder / FILE, (json.dumps(fields, indent=2) + "\n").encode())

    def is_missing(self, name: str, content: bytes) -> bool:
        """Returns whether this content has yet to be uploaded under this name."""
        return self.sent.get(name) != hashlib.sha256(content).hexdigest()

    def record_upload(self, name: str, content: bytes) -> None:
        """Records that this content has been uploaded under this name."""
        self.change(sent={**self.sent, name: hashlib.sha256(content).hexdigest()})

    def record_end(self, status: str, stopped_early: bool) -> None:
        """Records that the run has ended now."""
        self.change(end={"status": status, "stopped_early": stopped_early, "time": int(1000 * time.time())})


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Tries to lock a run's tracking state; yields whether it succeeded. The lock ends with the process."""
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
