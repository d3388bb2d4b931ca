"""The protocol of executors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Executor(Protocol):
    """Computes independent pieces of work; each in the same shapes, with one intra-op thread, without autograd."""

    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
        """The results in the order of the arguments, with a bounded number of them in memory."""
        ...
