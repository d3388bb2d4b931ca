"""`tracking.json`: where a run is tracked, how it ended, and what has been uploaded. It holds no credentials."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from glr_dist.claims import ClaimedError, claim
from glr_dist.config import Tracking
from glr_dist.errors import ConfigError
from glr_dist.files import write_atomically
from glr_dist.text import one_line
from glr_dist.tracking.location import same_location
from glr_dist.uris import without_credentials

FILE = "tracking.json"
_locked: set[Path] = set()  # folders that this process has locked
_NOTHING_UPLOADED: dict[str, Any] = {"run_id": None, "model_id": None, "lines": {}, "sent": {}}


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
            fields = json.loads((folder / FILE).read_bytes())
            state = TypeAdapter(cls).validate_python({**fields, "folder": folder})
            if state.end is not None and not {"status", "stopped_early", "time"} <= state.end.keys():
                raise ValueError("the end of the run is incomplete")
        except FileNotFoundError:
            raise ConfigError(f"{folder}: was not tracked; train it with tracking.kind=mlflow") from None
        except OSError as error:
            raise ConfigError(f"{folder / FILE}: cannot be read ({error.strerror})") from None
        except (ValueError, TypeError) as error:
            reason = one_line(error.errors()[0]["msg"] if isinstance(error, ValidationError) else error)
            raise ConfigError(f"{folder / FILE}: is damaged ({reason}); train the run again to track it") from None
        state.uri = without_credentials(state.uri)  # written by version 0.4, which knew fewer forms of them
        return state

    @classmethod
    def begin(cls, folder: Path, tracking: Tracking, uri: str) -> State:
        """Starts a run, or continues it if the folder's state has the same server and experiment."""
        state = cls(folder, without_credentials(uri), tracking.experiment)
        if (folder / FILE).exists():
            known = cls.read(folder)
            if same_location(known.uri, state.uri) and known.experiment == state.experiment:
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

    def move(self, uri: str) -> None:
        """Starts to track the run on another server, to which nothing has been uploaded yet.

        The run keeps its key, so that a server that had it before continues the same run.
        """
        tags = {name: value for name, value in self.tags.items() if name != "mlflow.parentRunId"}
        self.change(uri=without_credentials(uri), tags=tags, **_NOTHING_UPLOADED)

    def forget_run(self) -> None:
        """Records that the server no longer has the run."""
        self.change(key=uuid4().hex, **_NOTHING_UPLOADED)

    def forget(self, names: Collection[str]) -> None:
        """Records that the server no longer has the contents of these names, or the lines of these files."""
        if names:
            sent = {name: digest for name, digest in self.sent.items() if name not in names}
            lines = {name: last for name, last in self.lines.items() if name not in names}
            self.change(sent=sent, lines=lines, model_id=None if "model" in names else self.model_id)

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
    name = folder.resolve()
    if name in _locked:  # a claim excludes other processes only
        yield False
        return
    try:
        held = claim(folder, "tracking")
    except ClaimedError:
        yield False
        return
    _locked.add(name)
    try:
        with held:
            yield True
    finally:
        _locked.discard(name)
