"""`auto`: `layers` where it is predicted to be faster than `inline`, by one step's measured items."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch

from glr_dist.estimators import Estimator, Partial, Step
from glr_dist.execution import plan, predict
from glr_dist.execution.base import Piece
from glr_dist.execution.inline import Inline, one_thread
from glr_dist.execution.predict import Load


class _Measuring(Inline):
    """One thread that keeps the seconds of the items, and the bytes that `layers` would send of the tapes."""

    def __init__(self) -> None:
        super().__init__(1)
        self.costs = plan.Costs()
        self.item_seconds, self.tape_bytes = 0.0, 0

    def partials(
        self, estimator: Estimator, step: Step, passes: Iterable[list[Piece]]
    ) -> Iterator[tuple[Piece, Partial]]:
        """What each piece gives."""
        for pieces in passes:
            tapes = {piece.item.example_block: piece.tape for piece in pieces}
            self.tape_bytes += sum(plan.tape_bytes(step, tape) for tape in tapes.values())
            for piece in pieces:
                started = time.perf_counter()
                partial = estimator.partial(step, piece.item, piece.tape)
                seconds = time.perf_counter() - started
                self.costs.observe(step, piece.item, seconds)
                self.item_seconds += seconds
                yield piece, partial


def measured_load(estimator: Estimator, step: Step) -> Load:
    """What a step is on this machine, from running it once on one thread."""
    measuring = _Measuring()
    with one_thread(), torch.no_grad(), step.network.hooked():
        started = time.perf_counter()
        measuring.gradients(estimator, step)
        alone = time.perf_counter() - started - measuring.item_seconds
    tapes = measuring.tape_bytes // estimator.passes(step)
    return predict.load_of(estimator, step, tapes, lambda item: measuring.costs.seconds(step, item), alone)
