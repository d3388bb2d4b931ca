"""`inline`: computes work items in this process. The default, and the reference for all other executors."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import torch

from glr_dist.estimators import Estimator, Partial, Step
from glr_dist.execution.executor import Executor, TapedItem

A = TypeVar("A")
B = TypeVar("B")

_HANDOVER = 1e-3  # seconds of work; handing over less costs more than it saves


def _begin_worker() -> None:
    """Sets two options of this thread: one intra-op thread, and no autograd by default."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


class Inline(Executor):
    """Computes items in this process, each on one of `threads` threads; the result does not depend on their number.

    On a GPU, and where the other threads would have too little to do, the items follow one another.

    Args:
        threads: number of threads; torch's own number by default.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._shared = True  # False if the last step had too little work for several threads

    def __getstate__(self) -> dict[str, object]:
        """Leaves out the threads; a copy starts its own."""
        return {"threads": self.threads, "_pool": None, "_shared": True}

    def partials(
        self, estimator: Estimator, step: Step, passes: Iterable[list[TapedItem]]
    ) -> Iterator[tuple[TapedItem, Partial]]:
        """Yields the partial sum of each item, in order; at most 2 x threads of them are in memory."""
        seconds: list[float] = []

        def partial(taped: TapedItem) -> tuple[TapedItem, Partial]:
            started = time.perf_counter()
            found = estimator.partial(step, taped.item, taped.tape)
            seconds.append(time.perf_counter() - started)
            return taped, found

        # Threads of one GPU would only wait for each other.
        inner = self.map if self._shared and step.device.type != "cuda" else map
        yield from inner(partial, chain.from_iterable(passes))
        self._shared = sum(seconds) - max(seconds, default=0.0) > _HANDOVER

    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
        """Yields the results in the order of the arguments; at most 2 x threads of them are in memory."""
        if self.threads == 1 or (isinstance(arguments, Sized) and len(arguments) == 1):
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
