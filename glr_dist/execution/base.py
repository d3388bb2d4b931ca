"""What all executors share: the pieces of a step, and their sums, always in the same order."""

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


class Piece(NamedTuple):
    """A work item with the tape it needs; `last` says that no other item of its shared pass has its site and block."""

    item: WorkItem
    tape: Tape
    last: bool


class Executor(ABC):
    """Computes the pieces of a step somewhere: in the same shapes, with one intra-op thread each, without autograd.

    A context manager: what it holds is given back at the end.
    """

    def begin(self, estimator: Estimator, step: Step) -> None:  # noqa: B027  # most need nothing
        """Comes before `gradients`, while the network has no hooks of a pass."""

    def gradients(self, estimator: Estimator, step: Step) -> Gradients:
        """The estimate: the sum of what the work items give, in their order."""
        total = Gradients()
        deltas: dict[str, Tensor] = {}  # of one example block at a time
        for piece, partial in self.partials(estimator, step, self._passes(estimator, step, total)):
            total.add(partial)
            for site, delta in partial.delta.items():
                accumulate(deltas, site, delta)
            if piece.last and piece.item.site in deltas:
                item, delta = piece.item, deltas.pop(piece.item.site)
                total.add(
                    estimator.finish(step, item.shared_pass, item.example_block, piece.item.site, delta, piece.tape)
                )
        return total

    def _passes(self, estimator: Estimator, step: Step, total: Gradients) -> Iterator[list[Piece]]:
        """The pieces of each shared pass, which runs when they are asked for."""
        for shared_pass in range(estimator.passes(step)):
            tapes = dict(zip(step.example_blocks, self.tapes(estimator, step, shared_pass), strict=True))
            if not estimator.counts_loss:
                for tape in tapes.values():
                    total.loss = total.loss + tape.losses.sum() / (len(step.y) * estimator.passes(step))
            items = list(estimator.items(step, shared_pass))
            last = {(item.site, item.example_block): item for item in items}
            yield [
                Piece(item, tapes[item.example_block], item is last[item.site, item.example_block]) for item in items
            ]

    def tapes(self, estimator: Estimator, step: Step, shared_pass: int) -> list[Tape]:
        """A shared pass, block by block of the examples."""
        return list(self.map(lambda examples: estimator.tape(step, shared_pass, examples), step.example_blocks))

    @abstractmethod
    def partials(
        self, estimator: Estimator, step: Step, passes: Iterable[list[Piece]]
    ) -> Iterator[tuple[Piece, Partial]]:
        """What each piece of each shared pass gives, in their order."""

    @abstractmethod
    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
        """A function of this process's own: the results in the order of the arguments, a bounded number in memory."""

    def progress(self) -> dict[str, Any]:
        """What there is to tell of the work since this was last asked: nothing, by default."""
        return {}

    def close(self) -> None:  # noqa: B027  # most hold nothing
        """Gives back what it holds."""

    def __enter__(self: E) -> E:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
