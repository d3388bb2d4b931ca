"""Failures of the standard output, as opposed to those of files and sockets."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO


class OutputError(Exception):
    """The standard output cannot be written.

    Attributes:
        reason: the error of the system.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"standard output: {reason.strerror}")
        self.reason = reason


class _Guarded:
    """Wraps a stream; raises an `OutputError` if it fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _failures():
            return self._stream.write(text)

    def flush(self) -> None:
        with _failures():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error) from None


@contextmanager
def guarded_stdout() -> Iterator[None]:
    """Raises an `OutputError` if the standard output fails within the context; flushes it at the end.

    After a failure, the rest of the output is dropped: Python would try to write it again at exit.
    """
    stream = sys.stdout
    guarded: Any = _Guarded(stream)
    try:
        with redirect_stdout(guarded):
            yield
            guarded.flush()
    except OutputError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise
