"""Measures the blocks of an evaluation side by side, on threads of this process or on Ray actors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from glr_dist.execution.inline import Inline
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.ledger import Ledger
from glr_dist.robustness.measure import measure
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.subject import Subject
from glr_dist.robustness.suite import Suite

_HANG = 600.0  # seconds after which an actor that works on one block is restarted


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
    if actors == 0:
        yield from _on_threads(subjects, suite, work)
        return
    from glr_dist.execution.pool import Call, Pool  # here: Ray takes a second to import

    sent: list[Work] = []
    pool = Pool(_Remote, actors=actors, hang_timeout=_HANG, role="Evaluation")
    try:
        # Shared with each call: a restarted actor may have lost the arguments of its constructor.
        shared = pool.share("evaluation", (subjects, suite))

        def calls() -> Iterator[Call]:
            for each in work:
                sent.append(each)
                yield Call("measure", (shared, *each))

        for number, measurement in pool.run(calls()):
            yield sent[number], measurement
    finally:
        pool.close()


class _Remote:
    """The object inside each actor of the pool."""

    def measure(self, evaluation: tuple[Sequence[Subject], Suite], *work: Any) -> Measurement:
        subjects, suite = evaluation
        number, condition, block = work
        return measure(subjects[number], suite, condition, block)


def _on_threads(subjects: Sequence[Subject], suite: Suite, work: Iterator[Work]) -> Iterator[tuple[Work, Measurement]]:
    """Measures on threads of this process, each with its own copies of the networks."""
    local = threading.local()
    executor = Inline(1 if subjects[0].images.images.is_cuda else None)

    def measured(each: Work) -> tuple[Work, Measurement]:
        if not hasattr(local, "subjects"):
            local.subjects = subjects if executor.threads == 1 else [subject.copied() for subject in subjects]
        return each, measure(local.subjects[each.subject], suite, each.condition, each.block)

    yield from executor.map(measured, work)
