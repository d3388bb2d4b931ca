"""Watches the processes of Ray. If one dies, Ray's core ends this process silently or after a minute.

The watch interrupts the main thread, which then raises a `ClusterError` that names the dead process. If the main thread
does not react, because Ray's core waits for the dead process, the watch ends this process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from glr_dist.errors import ClusterError

_INTERVAL = 0.1  # seconds between two checks of the processes
_REACTION = 3.0  # seconds that the main thread has to react to the interrupt
_GRACE = 10.0  # seconds that it has to disconnect from a dead Ray
_FAILED, _STOPPED = 2, 130  # exit codes of the command line

Death = Callable[[], str | None]  # returns how a process died; None if it did not


class Watch:
    """Watches processes in a thread until `close` is called.

    Args:
        deaths: one function for each process.
        local: True if this process started the Ray.
        in_use: returns False once this process itself shuts down Ray without `expect_end`, as with `ray.shutdown`.
    """

    def __init__(self, deaths: Sequence[Death], in_use: Callable[[], bool], *, local: bool) -> None:
        self.reason: str | None = None  # of the first death
        self.expected = False  # True if this process itself is ending Ray
        self.killed = False  # True if Ray's processes were killed instead of shut down
        self.hurried = False  # True if a scheduler asked this process to end, and perhaps Ray's processes too
        self.local = local
        self._deaths, self._in_use = deaths, in_use
        self._closed, self._noticed = threading.Event(), threading.Event()
        self._interrupts = threading.current_thread() is threading.main_thread()
        threading.Thread(target=self._run, name="watch of Ray", daemon=True).start()

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def notice(self) -> None:
        """Called by the main thread when it reacts to the death of a process."""
        self._noticed.set()

    @property
    def dead(self) -> bool:
        """True if a process has ended."""
        return self._described() is not None

    def _run(self) -> None:
        while not self.dead:
            if self._closed.wait(_INTERVAL):
                return
        if not (self.expected or self._in_use()):
            return
        if not self.expected:
            self.reason = self._described()
            self._interrupt()
            if not self._noticed.wait(_REACTION):
                self._exit()
        if not self._closed.wait(_GRACE):
            self._exit()

    def _interrupt(self) -> None:
        """Sends SIGINT to the main thread, which interrupts its wait."""
        if self._interrupts and callable(signal.getsignal(signal.SIGINT)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _described(self) -> str | None:
        return next((how for death in self._deaths if (how := death()) is not None), None)

    def _exit(self) -> None:
        """Ends this process because its main thread would wait for the dead process forever."""
        if not self.expected:
            print(f"glr-dist: {self.reason}{_advice()}", file=sys.stderr)
        _exit_at_once(_STOPPED if self.expected else _FAILED)


class LostRayError(ClusterError):
    """The Ray of this process died; the message also says what to do."""


_watch: Watch | None = None
_advice: Callable[[], str] = str  # what to do after a loss


def begin(deaths: Sequence[Death], in_use: Callable[[], bool], *, local: bool) -> None:
    """Starts to watch the processes of Ray; takes the arguments of `Watch`."""
    global _watch
    _watch = Watch(deaths, in_use, local=local)


def exited(name: str, code: Callable[[], int | None]) -> Death:
    """Returns the death of a child process.

    Args:
        name: its name.
        code: returns its exit code: None while it runs, -N if signal N killed it.
    """

    def death() -> str | None:
        if (found := code()) is None:
            return None
        if found >= 0:
            return f"Ray's {name} process on this machine ended with code {found}"
        try:
            killer = signal.Signals(-found).name
        except ValueError:
            killer = f"signal {-found}"
        return f"Ray's {name} process on this machine was killed by {killer}"

    return death


def expect_end(*, hurried: bool = False) -> None:
    """Declares that the end of Ray is not a loss, because this process ends it or disconnects from it.

    Args:
        hurried: True if a scheduler asked this process to end. It may have asked the processes of a local Ray too, in
            which case an orderly shutdown would wait for answers that never come.
    """
    if _watch is not None and _watch.reason is None:
        _watch.expected = True
        _watch.hurried |= hurried and _watch.local


def end(*, killed: bool) -> None:
    """Ends the watch after Ray has ended; if it was killed or lost, this process cannot start or join another."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch.killed = killed
        if not killed:
            _watch = None


def unresponsive() -> bool:
    """Returns True if Ray is dead or may be dying, so that waiting for its answers could hang."""
    if _watch is None:
        return False
    _watch.notice()
    return _watch.hurried or _watch.dead


def lost() -> str | None:
    """Returns how the Ray of this process died; None if it did not."""
    if _watch is None or _watch.reason is None:
        return None
    _watch.notice()
    return _watch.reason


def check() -> None:
    """Raises a ClusterError if the Ray of this process died or was killed."""
    if (reason := lost()) is not None:
        raise ClusterError(reason)
    if _watch is not None and _watch.killed:
        raise ClusterError("the Ray of this process was killed; start another process")


@contextmanager
def explained(advice: Callable[[], str] = str) -> Iterator[None]:
    """Replaces the error that follows the death of Ray by a LostRayError.

    Args:
        advice: returns the end of the message, which says what to do.
    """
    global _advice
    before, _advice = _advice, advice
    try:
        yield
    except LostRayError:  # from an inner context, whose advice is more specific
        raise
    except BaseException:
        if (reason := lost()) is not None:
            raise LostRayError(f"{reason}{advice()}") from None
        raise
    finally:
        _advice = before


def exit_if_killed(code: int) -> int:
    """Returns the exit code; if Ray was killed, exits with it at once, since Ray's core would wait for the dead Ray."""
    if _watch is not None and _watch.killed:
        _exit_at_once(code)
    return code


def _exit_at_once(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
