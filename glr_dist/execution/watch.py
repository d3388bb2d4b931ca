"""Watches the processes of a local Ray: Ray's core ends this process without a word, or after a minute, if one dies.

The watch interrupts the main thread, which raises a `ClusterError` in place of the error that it meets. If the main
thread does not answer, because it waits for the dead process in Ray's core, the watch ends this process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from glr_dist.errors import ClusterError

_INTERVAL = 0.1  # seconds between two looks at the processes
_GRACE = 10.0  # seconds in which the main thread must have disconnected from a dead Ray
_FAILED, _STOPPED = 2, 130  # exit codes of the command line

ExitCode = Callable[[], int | None]  # of a process: None while it runs, -N if signal N killed it


class Watch:
    """Watches processes from a thread, until `close`.

    Args:
        processes: name and exit code of each process.
        in_use: returns False once this process has begun to end its Ray without `expect_end`, as `ray.shutdown` does.
    """

    def __init__(self, processes: Mapping[str, ExitCode], in_use: Callable[[], bool]) -> None:
        self.reason: str | None = None  # of the first death
        self.expected = False  # True if this process is about to end its Ray
        self.killed = False  # True if Ray's processes were killed instead of shut down
        self.hurried = False  # True if a scheduler told this process to end, and perhaps Ray's processes too
        self._processes, self._in_use = processes, in_use
        self._closed = threading.Event()
        self._interrupts = threading.current_thread() is threading.main_thread()
        threading.Thread(target=self._run, name="watch of Ray", daemon=True).start()

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    @property
    def dead(self) -> bool:
        """True if a process has ended."""
        return any(code() is not None for code in self._processes.values())

    def _run(self) -> None:
        while not self.dead:
            if self._closed.wait(_INTERVAL):
                return
        if not (self.expected or self._in_use()):
            return
        if not self.expected:
            self.reason = self._described()
            self._interrupt()
        if not self._closed.wait(_GRACE):
            self._exit()

    def _interrupt(self) -> None:
        """Sends Ctrl-C to the main thread, which ends what it waits for."""
        if self._interrupts and callable(signal.getsignal(signal.SIGINT)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _described(self) -> str:
        name, code = next((n, c) for n, code in self._processes.items() if (c := code()) is not None)
        if code >= 0:
            return f"Ray's process {name} on this machine ended with code {code}"
        try:
            killer = signal.Signals(-code).name
        except ValueError:
            killer = f"signal {-code}"
        return f"Ray's process {name} on this machine was killed by {killer}"

    def _exit(self) -> None:
        """Ends this process, whose main thread waits for the dead process for ever."""
        if not self.expected:
            print(f"glr-dist: {self.reason}{_advice()}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(_STOPPED if self.expected else _FAILED)


class LostRayError(ClusterError):
    """The local Ray of this process died; the message also says what to do."""


_watch: Watch | None = None
_advice: Callable[[], str] = str  # what to do after a loss


def begin(processes: Mapping[str, ExitCode], in_use: Callable[[], bool]) -> None:
    """Begins to watch the processes of a local Ray; arguments as `Watch`."""
    global _watch
    _watch = Watch(processes, in_use)


def expect_end(*, hurried: bool = False) -> None:
    """Declares that the end of the local Ray is not a loss, because this process ends it.

    Args:
        hurried: True if a scheduler told this process to end. Ray's own processes may be ending too, so that a proper
            shutdown would wait for their answers.
    """
    if _watch is not None and _watch.reason is None:
        _watch.expected = True
        _watch.hurried |= hurried


def end(*, killed: bool) -> None:
    """Ends the watch after a local Ray has ended; if it was killed, this process cannot start another."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch.killed = killed
        if not killed:
            _watch = None


def unresponsive() -> bool:
    """Returns True if the local Ray is dead or dying, so that its answers must not be waited for."""
    return _watch is not None and (_watch.hurried or _watch.dead)


def lost() -> str | None:
    """Returns how the local Ray of this process died; None if it did not."""
    return None if _watch is None else _watch.reason


def check() -> None:
    """Raises a ClusterError if the local Ray of this process died."""
    if (reason := lost()) is not None:
        raise ClusterError(reason)


@contextmanager
def explained(advice: Callable[[], str] = str) -> Iterator[None]:
    """Raises a LostRayError in place of the error that follows the death of the local Ray.

    Args:
        advice: returns the end of the message.
    """
    global _advice
    before, _advice = _advice, advice
    try:
        yield
    except LostRayError:  # by an inner context, whose advice is better
        raise
    except BaseException:
        if (reason := lost()) is not None:
            raise LostRayError(f"{reason}{advice()}") from None
        raise
    finally:
        _advice = before


def exit_if_killed(code: int) -> int:
    """Returns the exit code; ends the process with it at once if its Ray was killed: Ray's core would wait for it."""
    if _watch is not None and _watch.killed:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code
