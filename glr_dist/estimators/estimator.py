"""The protocol of a gradient estimator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from glr_dist.estimators.step import Partial, Step, WorkItem
from glr_dist.estimators.work import DriverWork, ItemWork
from glr_dist.sites import Tape


class Estimator(Protocol):
    """Cuts a step into work items, computes the partial sum of each, and states what they cost.

    Attributes:
        counts_loss: True if the items report the loss; otherwise it is that of the shared passes.
    """

    counts_loss: bool

    def passes(self, step: Step) -> int:
        """Returns M, the number of shared passes of a step."""
        ...

    def tape(self, step: Step, shared_pass: int, example_block: int) -> Tape:
        """Runs the shared forward pass of one example block."""
        ...

    def items(self, step: Step, shared_pass: int) -> Iterator[WorkItem]:
        """Yields the items that use a shared pass, in the order in which their partial sums are added."""
        ...

    def partial(self, step: Step, item: WorkItem, tape: Tape) -> Partial:
        """Computes an item's share of the estimate."""
        ...

    def finish(self, step: Step, shared_pass: int, example_block: int, site: str, delta: Tensor, tape: Tape) -> Partial:
        """Forms the parameter gradients of a site from δ / N [n, *S], summed over the items of one example block."""
        ...

    def copies(self, step: Step) -> int:
        """Returns the number of noisy copies that a step evaluates, per example, over all sites and passes."""
        ...

    def forward_passes(self, step: Step) -> float:
        """Returns the step's cost in forward passes of the batch; a suffix counts by its share of the FLOPs."""
        ...

    def work(self, step: Step, item: WorkItem) -> ItemWork:
        """Returns the work of an item, from the configuration alone."""
        ...

    def driver_work(self, step: Step) -> DriverWork:
        """Returns the work that the driver does alone in a step."""
        ...
