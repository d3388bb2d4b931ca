"""The thread that uploads a run while it trains. The training never waits for a server."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from glr_dist.config import Config
from glr_dist.tracking.location import SQLITE, check_location, is_tracked, tracking_uri
from glr_dist.tracking.messages import warn_incomplete
from glr_dist.tracking.patience import Patience
from glr_dist.tracking.provenance import provenance
from glr_dist.tracking.state import FILE, State, locked
from glr_dist.tracking.status import Paused, final_status
from glr_dist.tracking.system_metrics import SystemMetrics

_POLL_INTERVAL = 0.5  # seconds between looks at the folder
_RETRY_INTERVAL = 5.0  # seconds until the next attempt after an error
_SAMPLE_INTERVAL = 10.0  # seconds between samples of the system metrics
_PATIENCE = 5.0  # seconds that an ended run waits for all answers of a server
_PATIENCE_DATABASE = 30.0  # the same for a local database, which waits for nobody
_PATIENCE_IF_PAUSED = 1.0  # the same for a run that continues later
_ATTEMPTS = 3  # attempts after the end of a run if the server cannot be reached


@contextmanager
def tracked(config: Config, folder: Path) -> Iterator[Follower | None]:
    """Uploads a run to MLflow while the body trains it, if the configuration asks for tracking.

    Errors of the server never end, block or slow down the training. A line on stderr reports what could not be
    uploaded by the end, and `sync` uploads it later. The run's status becomes FINISHED, KILLED after a
    `KeyboardInterrupt`, FINISHED with the tag `stopped_early` after a `SystemExit` (Ray Tune stops trials so), else
    FAILED. After `Paused` the run does not wait for an unreachable server, and at most a second for a slow one.

    Args:
        config: the configuration.
        folder: the run's folder, already opened by the trainer.

    Yields:
        The thread, whose `address` is that of the run's page; None if the run is not tracked.

    Raises:
        ConfigError: as `check_location`.
    """
    check_location(config.tracking)
    if not is_tracked(config.tracking):
        yield None
        return
    with ExitStack() as resources:
        follower = _start(config, folder, resources)
        try:
            yield follower
        finally:
            if follower is not None:
                follower.finish(sys.exc_info()[0])


def _start(config: Config, folder: Path, resources: ExitStack) -> Follower | None:
    """Starts the thread; prints a warning and returns None if that fails."""
    try:
        if not resources.enter_context(locked(folder)):
            raise RuntimeError("another process tracks it")
        known = State.read(folder).uri if (folder / FILE).exists() else None
        uri = tracking_uri(config.tracking, known)
        follower = Follower(folder, State.begin(folder, config.tracking, uri), uri)
        follower.start()
    except Exception as error:
        warn_incomplete(folder, error)
        return None
    return follower


class Follower(threading.Thread):
    """Uploads new content of a run's folder, until the run has ended and either all is uploaded or the wait is over.

    Args:
        folder: the run's folder.
        state: the state of its tracking.
        uri: URI of the server, with credentials.
    """

    def __init__(self, folder: Path, state: State, uri: str) -> None:
        super().__init__(name="tracking", daemon=True)
        # Imported here, in the main thread: two threads that import at the same time can see half a module.
        from glr_dist.tracking.uploader import Uploader

        self._folder, self._state, self._uri = folder, state, uri
        self._patience = Patience()
        self._uploader = Uploader(
            folder,
            state,
            uri,
            on_answer=self._record_answer,
            stopped=lambda: self._abandoned,
            local_work=self._patience.local_work,
        )
        self._ended = threading.Event()
        self._abandoned = False  # True once `finish` no longer waits
        self._error: Exception | None = None

    @property
    def address(self) -> str | None:
        """Address of the run's page on a server; None for a database, and while the server has not answered."""
        return self._uploader.address

    def run(self) -> None:
        """Uploads until everything has arrived."""
        try:
            self._state.change(tags={**provenance(self._folder), **self._state.tags})
            system_metrics = SystemMetrics(self._folder)
        except Exception as error:
            self._error = error
            return
        next_sample, next_upload, failures = time.monotonic() + _SAMPLE_INTERVAL, 0.0, 0
        while not self._abandoned:
            ended = self._ended.wait(_POLL_INTERVAL)
            try:
                if time.monotonic() >= next_sample or (ended and next_sample < float("inf")):
                    system_metrics.sample()
                    next_sample = float("inf") if ended else time.monotonic() + _SAMPLE_INTERVAL
                if ended or time.monotonic() >= next_upload:
                    self._uploader.upload()
            except Exception as error:
                self._error = error
                next_upload = time.monotonic() + _RETRY_INTERVAL
                failures += ended
                if failures == _ATTEMPTS:
                    return
                time.sleep(_POLL_INTERVAL if ended else 0)
            else:
                if ended:
                    return

    def _record_answer(self) -> None:
        self._error = None

    def finish(self, error: type[BaseException] | None) -> None:
        """Waits a limited time for the remaining uploads after a run; if some are left, prints how to upload them.

        Args:
            error: the exception that ended the run, if any.
        """
        paused = error is not None and issubclass(error, Paused)
        database = self._uri.startswith(SQLITE)
        self._patience.start(_PATIENCE_IF_PAUSED if paused else _PATIENCE_DATABASE if database else _PATIENCE)
        try:
            self._state.record_end(*final_status(error))
            self._ended.set()
            while self.is_alive() and not self._patience.is_over and not (paused and self._error is not None):
                self.join(0.05)
        except Exception as reason:
            self._error = reason
        finally:
            self._abandoned = True
        if not paused and (self.is_alive() or self._error is not None):
            warn_incomplete(self._folder, self._error)
