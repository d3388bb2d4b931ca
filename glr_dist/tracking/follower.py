"""The thread that follows a run: it reads what the trainer writes and sends it; it waits for servers, no run for it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from glr_dist.config import Config
from glr_dist.tracking.machine import Machine
from glr_dist.tracking.provenance import provenance
from glr_dist.tracking.state import FILE, Paused, State, ended_with, held, warn

_LOOK = 0.5  # seconds between looks at the folder
_AGAIN = 5.0  # seconds until a server that was away is asked again
_SAMPLE = 10.0  # seconds between samples of the machine
_SLOW = 10.0  # seconds that an ended run waits for the next answer of a server
_DOWN = 3.0  # the same, for one that was away
_PAUSED = 1.0  # the same, of a run that goes on later
_TRIES = 3  # of an ended run, if the server is away; where nobody listens, they take a second


@contextmanager
def following(settings: Config, out: Path) -> Iterator[None]:
    """Follows a run while the body trains; see `tracked`."""
    with ExitStack() as opened:
        follower = _begun(settings, out, opened)
        try:
            yield
        finally:
            if follower is not None:
                follower.finish(sys.exc_info()[0])


def _begun(settings: Config, out: Path, opened: ExitStack) -> Follower | None:
    """The thread, if it could be started; else a line says so."""
    try:
        # Here, not beside the training: two threads that import at the same time can meet half a module.
        from glr_dist.tracking.server import uri_of

        if not opened.enter_context(held(out)):
            raise RuntimeError("another process follows it")
        known = State.read(out).uri if (out / FILE).exists() else None
        uri = uri_of(settings.tracking, known)
        follower = Follower(out, State.begun(out, settings.tracking, uri), uri)
        follower.start()
    except Exception as error:
        warn(out, error)
        return None
    return follower


class Follower(threading.Thread):
    """Sends what is in a run's folder, until all has arrived after the end, or nobody waits any more.

    Args:
        folder: of the run.
        state: what has arrived.
        uri: of the server, with credentials.
    """

    def __init__(self, folder: Path, state: State, uri: str) -> None:
        super().__init__(name="tracking", daemon=True)
        from glr_dist.tracking.sender import Sender

        self._folder, self._state = folder, state
        self._sender = Sender(folder, state, uri, self._answered, lambda: self._left)
        self._ended = threading.Event()
        self._left = False  # nobody waits for it
        self._error: Exception | None = None
        self._last_answer = time.monotonic()

    def run(self) -> None:
        """Until all has arrived."""
        try:
            self._state.change(tags={**provenance(self._folder), **self._state.tags})
            machine = Machine(self._folder)
        except Exception as error:
            self._error = error
            return
        next_sample, next_send, tries = time.monotonic() + _SAMPLE, 0.0, 0
        while not self._left:
            ended = self._ended.wait(_LOOK)
            try:
                if time.monotonic() >= next_sample or (ended and next_sample < float("inf")):
                    machine.sample()
                    next_sample = float("inf") if ended else time.monotonic() + _SAMPLE
                if ended or time.monotonic() >= next_send:
                    self._sender.send()
            except Exception as error:
                self._error = error
                next_send = time.monotonic() + _AGAIN
                tries += ended
                if tries == _TRIES:
                    return
                time.sleep(_LOOK if ended else 0)
            else:
                if ended:
                    return

    def _answered(self) -> None:
        self._error, self._last_answer = None, time.monotonic()

    def finish(self, error: type[BaseException] | None) -> None:
        """The run has ended, by an exception or well: waits a while for the rest to arrive, or says how to send it."""
        ended, paused = time.monotonic(), error is not None and issubclass(error, Paused)
        try:
            self._state.ended(*ended_with(error))
            self._ended.set()
            while self.is_alive() and not (paused and self._error is not None):
                patience = _PAUSED if paused else _SLOW if self._error is None else _DOWN
                if time.monotonic() > max(ended, self._last_answer) + patience:
                    break
                self.join(0.05)
        except Exception as reason:
            self._error = reason
        finally:
            self._left = True
        if not paused and (self.is_alive() or self._error is not None):
            warn(self._folder, self._error)
