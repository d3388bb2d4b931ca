"""Spreads the pieces of a long work over threads of this process or over Ray actors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from glr_dist.execution.inline import Inline
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.ledger import Ledger
from glr_dist.robustness.measure import measure
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.subject import Subject
from glr_dist.robustness.suite import Suite

_HANG = 600.0  # seconds after which an actor that works on one piece is restarted

S = TypeVar("S")
W = TypeVar("W", bound=tuple[Any, ...])
R = TypeVar("R")


class Work(NamedTuple):
    """One block of one subject under one condition."""

    subject: int
    condition: Condition
    block: int


def pending(ledgers: Sequence[Ledger]) -> Iterator[Work]:
    """Yields the blocks that are still to be measured at the time of the request."""
    for number, ledger in enumerate(ledgers):
        for condition in ledger.conditions:
            for block in ledger.blocks(condition):
                if ledger.is_pending(condition, block):
                    yield Work(number, condition, block)


def measurements(
    subjects: Sequence[Subject], suite: Suite, work: Iterator[Work], actors: int | None
) -> Iterator[tuple[Work, Measurement]]:
    """Yields the measurement of each block in the order of completion."""
    shared = (list(subjects), suite)
    single = subjects[0].images.images.is_cuda
    yield from spread(_measured, shared, work, actors, copied=_copied, threads=1 if single else None)


def _measured(
    evaluation: tuple[Sequence[Subject], Suite], number: int, condition: Condition, block: int
) -> Measurement:
    subjects, suite = evaluation
    return measure(subjects[number], suite, condition, block)


def _copied(evaluation: tuple[list[Subject], Suite]) -> tuple[list[Subject], Suite]:
    subjects, suite = evaluation
    return [subject.copied() for subject in subjects], suite


def spread(
    function: Callable[..., R],
    shared: S,
    work: Iterator[W],
    actors: int | None,
    *,
    copied: Callable[[S], S],
    threads: int | None = None,
    hang: float = _HANG,
    role: str = "Evaluation",
    gpus: float = 0,
) -> Iterator[tuple[W, R]]:
    """Yields each piece of work with its result `function(shared, *piece)`, in the order of completion.

    Args:
        function: a function of a module, which depends on nothing but its arguments.
        shared: what all pieces use; sent to each actor once.
        work: the pieces, tuples of arguments.
        actors: number of Ray actors; 0: threads of this process. Default: as many as the cluster has room for.
        copied: returns a copy of `shared` for another thread, since a module must not run in two at once.
        threads: number of threads, if there are no actors; torch's own number by default.
        hang: seconds after which an actor that works on one piece is restarted.
        role: role of the actors, in Ray's dashboard.
        gpus: GPUs that each actor reserves, beside one CPU.
    """
    if actors == 0:
        yield from _on_threads(function, shared, work, copied, threads)
        return
    from glr_dist.execution.pool import Call, Pool  # here: Ray takes a second to import

    sent: list[W] = []
    pool = Pool(_Remote, actors=actors, gpus=gpus, hang_timeout=hang, role=role)
    try:
        # Shared with each call: a restarted actor may have lost the arguments of its constructor.
        held = pool.share("shared", shared)

        def calls() -> Iterator[Call]:
            for piece in work:
                sent.append(piece)
                yield Call("compute", (function, held, *piece))

        for number, result in pool.run(calls()):
            yield sent[number], result
    finally:
        pool.close()


class _Remote:
    """The object inside each actor of the pool."""

    def compute(self, function: Callable[..., Any], shared: Any, *piece: Any) -> Any:
        return function(shared, *piece)


def _on_threads(
    function: Callable[..., R], shared: S, work: Iterator[W], copied: Callable[[S], S], threads: int | None
) -> Iterator[tuple[W, R]]:
    """Computes on threads of this process, each with its own copy of what is shared."""
    local = threading.local()
    executor = Inline(threads)

    def computed(piece: W) -> tuple[W, R]:
        if not hasattr(local, "shared"):
            local.shared = shared if executor.threads == 1 else copied(shared)
        return piece, function(local.shared, *piece)

    yield from executor.map(computed, work)
