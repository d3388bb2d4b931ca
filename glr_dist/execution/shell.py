"""The shell of a pool's actor: it holds a plain object, caches shared values, and says which software it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from glr_dist.execution.orphans import end_with_raylet
from glr_dist.execution.software import Software, node_name, software
from glr_dist.imported import search


class Shared(NamedTuple):
    """A value in the object store. An actor caches the latest version of each name.

    The pool sends the reference only with the first call that needs it on an actor: each one costs a millisecond.
    """

    name: str
    version: int
    ref: tuple[Any, ...]  # in a tuple, because Ray would fetch the value of a bare reference for each call


class StaleError(Exception):
    """Raised by a restarted actor that does not have the version of a shared value that a call uses."""


class Shell:
    """Holds a plain object inside an actor, and calls its methods with shared values in place of their references.

    Args:
        kind: class of the object.
        arguments: its arguments.
        folders: folders with code of the user's own.
    """

    def __init__(self, kind: type, arguments: tuple[Any, ...], folders: Sequence[str] = ()) -> None:
        end_with_raylet()
        search(folders)
        self._inner = kind(*arguments)
        self._cached: dict[str, tuple[int, Any]] = {}

    def hello(self) -> tuple[int, str, Software]:
        """Returns the process id, the node's name and its software; an actor that answers is healthy."""
        return os.getpid(), node_name(), software()

    def call(self, method: str, arguments: tuple[Any, ...]) -> tuple[Any, float]:
        """Calls a method of the object; returns its result and the seconds it took."""
        started = time.perf_counter()
        values = [self._value(given) if isinstance(given, Shared) else given for given in arguments]
        return getattr(self._inner, method)(*values), time.perf_counter() - started

    def _value(self, shared: Shared) -> Any:
        version, value = self._cached.get(shared.name, (None, None))
        if version != shared.version:
            if not shared.ref:
                raise StaleError(shared.name)
            value = ray.get(shared.ref[0])
            self._cached[shared.name] = shared.version, value
        return value
