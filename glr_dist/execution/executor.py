"""Base class of all executors; adds the partial sums of a step, always in the same order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from glr_dist.estimators import Estimator, Gradients, Partial, Step, WorkItem, accumulate
from glr_dist.sites import Tape

A = TypeVar("A")
B = TypeVar("B")
E = TypeVar("E", bound="Executor")


class TapedItem(NamedTuple):
    """A work item with the tape that it needs.

    Attributes:
        item: the work item.
        tape: the shared pass of its example block.
        last: True if no later item of the shared pass has the same site and example block.
    """

    item: WorkItem
    tape: Tape
    last: bool


class Executor(ABC):
    """Computes the items of a step: always in the same shapes, on one intra-op thread each, without autograd.

    An executor is a context manager that releases its resources on exit.

    Attributes:
        decides_alone: True if this process decides alone whether a step that cannot be compiled runs eagerly.
    """

    decides_alone = True

    def begin(self, estimator: Estimator, step: Step) -> None:  # noqa: B027  # most executors need none
        """Called before `gradients`, while the network does not have the hooks of a pass."""

    def gradients(self, estimator: Estimator, step: Step, check: Callable[[], None] = lambda: None) -> Gradients:
        """Returns the estimate: the sum of the partial sums, in the order of the work items.

        Calls `check` first, where an error of one replica reaches the others.
        """
        check()
        total = Gradients()
        deltas: dict[str, Tensor] = {}  # of one example block at a time
        for taped, partial in self.partials(estimator, step, self._passes(estimator, step, total)):
            total.add(partial)
            for site, delta in partial.delta.items():
                accumulate(deltas, site, delta)
            if taped.last and taped.item.site in deltas:
                item, delta = taped.item, deltas.pop(taped.item.site)
                share = estimator.finish(step, item.shared_pass, item.example_block, taped.item.site, delta, taped.tape)
                total.add(share, own=True)
        return total

    def _passes(self, estimator: Estimator, step: Step, total: Gradients) -> Iterator[list[TapedItem]]:
        """Yields the items of each shared pass, which runs when its items are requested."""
        passes = estimator.passes(step)
        for shared_pass in range(passes):
            tapes = dict(zip(step.example_blocks, self.tapes(estimator, step, shared_pass), strict=True))
            if not estimator.counts_loss:
                for tape in tapes.values():
                    total.loss = total.loss + tape.losses.sum() / (step.size * passes)
            for tape in tapes.values():
                for name, value in tape.statistics.items():
                    share = value / (len(step.all_example_blocks) * passes)
                    accumulate(total.statistics, name, share)
                for name, value in step.error_moment(tape, passes).items():
                    accumulate(total.moments, name, value)
            items = list(estimator.items(step, shared_pass))
            last = {(item.site, item.example_block): item for item in items}
            yield [
                TapedItem(item, tapes[item.example_block], item is last[item.site, item.example_block])
                for item in items
            ]

    def tapes(self, estimator: Estimator, step: Step, shared_pass: int) -> list[Tape]:
        """Runs a shared pass; returns the tape of each example block."""
        return list(self.map(lambda block: estimator.tape(step, shared_pass, block), step.example_blocks))

    @abstractmethod
    def partials(
        self, estimator: Estimator, step: Step, passes: Iterable[list[TapedItem]]
    ) -> Iterator[tuple[TapedItem, Partial]]:
        """Yields the partial sum of each item of each shared pass, in order."""

    @abstractmethod
    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
        """Yields a function's results in the order of the arguments; keeps a bounded number of them in memory."""

    def progress(self) -> dict[str, Any]:
        """Returns statistics since the previous call; empty by default."""
        return {}

    def close(self) -> None:  # noqa: B027  # most executors hold none
        """Releases the executor's resources."""

    def __enter__(self: E) -> E:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
