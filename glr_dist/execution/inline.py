"""`inline`: work items in this process, on threads. The embedded default, and the reference for all other executors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch

from glr_dist.estimators import Estimator, Partial, Step
from glr_dist.execution.base import Executor, Piece

A = TypeVar("A")
B = TypeVar("B")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operators use one thread inside: some of them (sigmoid, QR, sums) depend on the number bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _begin_worker() -> None:
    """Both settings are a thread's own: one intra-op thread, and no graph unless a piece of work asks for one."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


class Inline(Executor):
    """Items side by side on `threads` threads, each item on one: the sums do not depend on their number.

    Args:
        threads: how many work at a time; torch's own number by default.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, object]:
        """A copy has threads of its own."""
        return {"threads": self.threads, "_pool": None}

    def partials(
        self, estimator: Estimator, step: Step, passes: Iterable[list[Piece]]
    ) -> Iterator[tuple[Piece, Partial]]:
        """What each piece gives, in the order of the pieces, at most 2 x threads of them in memory."""
        pieces = chain.from_iterable(passes)
        return self.map(lambda piece: (piece, estimator.partial(step, piece.item, piece.tape)), pieces)

    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
        """The results in the order of the arguments, at most 2 x threads of them in memory."""
        if self.threads == 1:
            yield from map(function, arguments)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, "glr_dist", initializer=_begin_worker)
        ahead: deque[Future[B]] = deque()
        try:
            for argument in arguments:
                ahead.append(self._pool.submit(function, argument))
                if len(ahead) > 2 * self.threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
