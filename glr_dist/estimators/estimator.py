"""The protocol of a gradient estimator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from glr_dist.estimators.step import Partial, Step, WorkItem
from glr_dist.sites import Tape


class Estimator(Protocol):
    """Work items of a step, the tape that they share, and the partial sum of each.

    `counts_loss` says whether the items report the loss (else it is that of the shared passes).
    """

    counts_loss: bool

    def passes(self, step: Step) -> int:
        """The number of shared passes of a step."""
        ...

    def tape(self, step: Step, shared_pass: int, example_block: int) -> Tape:
        """The shared forward pass of one example block."""
        ...

    def items(self, step: Step, shared_pass: int) -> Iterator[WorkItem]:
        """The items that use a shared pass, in the order in which partial sums are added."""
        ...

    def partial(self, step: Step, item: WorkItem, tape: Tape) -> Partial:
        """The item's share of the estimate."""
        ...

    def finish(self, step: Step, shared_pass: int, example_block: int, site: str, delta: Tensor, tape: Tape) -> Partial:
        """Parameter gradients of a site from the summed δ / N of one example block."""
        ...

    def evaluations(self, step: Step) -> int:
        """How many noisy copies of each example a step evaluates, the sum over sites and shared passes."""
        ...

    def forward_passes(self, step: Step) -> float:
        """The step's cost in forward passes of the batch; a suffix counts as its share of the network's FLOPs."""
        ...
