"""`tracking.json`: where a run is followed, how it ended, and what has arrived. It holds no credentials."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from glr_dist import config
from glr_dist.errors import ConfigError, without_credentials
from glr_dist.files import write_atomically
from glr_dist.text import one_line

FILE = "tracking.json"
_LOCK = ".tracking.lock"


class Paused(SystemExit):
    """Ends a run that goes on later, or was stopped: what has not arrived is sent then, or by `sync`."""


@dataclass
class State:
    """What is remembered of a run on a server. Changed by its methods, which write it to the disk.

    Attributes:
        folder: of the run.
        uri: of the server, without credentials.
        experiment: its name.
        key: names the run on the server before the server has given it an id, so that it is created once.
        started: when, in ms since 1970.
        tags: of the run.
        register_as: the registered model that its network becomes a version of.
        dataset: what its training set is.
        run_id, model_id: given by the server.
        lines: how many lines of a file have arrived; of `metrics.jsonl`, up to which epoch.
        sent: digests of all else that has arrived, by name.
        end: how the run ended: `status`, `stopped_early`, `time` in ms; None while it goes on.
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
        """What a run's folder remembers.

        Raises:
            ConfigError: the run was not tracked, or the file is damaged.
        """
        try:
            return cls(folder=folder, **json.loads((folder / FILE).read_bytes()))
        except FileNotFoundError:
            raise ConfigError(f"{folder}: was not tracked; train it with tracking.kind=mlflow") from None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{folder / FILE}: cannot be read ({one_line(error)})") from None

    @classmethod
    def begun(cls, folder: Path, tracking: config.Tracking, uri: str) -> State:
        """What the folder remembers of a run at that place, else of a new one; either goes on from now."""
        state = cls(folder, without_credentials(uri), tracking.experiment)
        if (folder / FILE).exists():
            known = cls.read(folder)
            if (known.uri, known.experiment) == (state.uri, state.experiment):
                state = known
        state.change(tags={**state.tags, **tracking.tags}, register_as=tracking.register_as, end=None)
        return state

    def change(self, **values: Any) -> None:
        """Sets attributes."""
        with self._lock:
            for name, value in values.items():
                setattr(self, name, value)
            kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "folder"}
            write_atomically(self.folder / FILE, (json.dumps(kept, indent=2) + "\n").encode())

    def lacks(self, name: str, content: bytes) -> bool:
        """Whether this content of something has not arrived."""
        return self.sent.get(name) != hashlib.sha256(content).hexdigest()

    def has(self, name: str, content: bytes) -> None:
        """It has arrived."""
        self.change(sent={**self.sent, name: hashlib.sha256(content).hexdigest()})

    def ended(self, status: str, stopped_early: bool) -> None:
        """The run has ended now."""
        self.change(end={"status": status, "stopped_early": stopped_early, "time": int(1000 * time.time())})


def with_credentials(uri: str) -> str:
    """A URI as $MLFLOW_TRACKING_URI has it, if that names the same server."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    return named if without_credentials(named) == uri else uri


def ended_with(error: type[BaseException] | None) -> tuple[str, bool]:
    """The status of a run that an exception, or none, has ended, and whether it was stopped early on purpose."""
    if error is None:
        return "FINISHED", False
    if issubclass(error, SystemExit):
        return "FINISHED", True
    return ("KILLED" if issubclass(error, KeyboardInterrupt) else "FAILED"), False


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Whether this process alone has the run's tracking for now; the lock goes with the process."""
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def warn(folder: Path, error: BaseException | None) -> None:
    """The one line about a run that has not arrived in full."""
    reason = reason_of(error) if error else "the server is slow"
    print(
        f"warning: MLflow has not received all of the run ({reason}); send the rest with: glr-dist sync {folder}",
        file=sys.stderr,
    )


def reason_of(error: BaseException) -> str:
    """The beginning of what MLflow says, in one line and without credentials."""
    first, *_ = str(error).split(" with exception ")  # what follows are pages of the ways through its libraries
    return without_credentials(" ".join(first.split()) or type(error).__name__)[:300]
