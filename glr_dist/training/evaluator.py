"""Evaluations that a trainer makes by modules of later layers, such as those of robustness."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from glr_dist.config import Config
from glr_dist.data import Dataset
from glr_dist.registry import EVALUATORS

if TYPE_CHECKING:
    from glr_dist.training.trainer import Trainer


class Evaluator(Protocol):
    """The evaluations of one run. They must not change anything of the training.

    Attributes:
        notes: what is left out, one line each.
        actors: number of Ray actors of the evaluation at the end; 0: this process. Default: the evaluator's choice.
        report: the report of the evaluation at the end, once it is done.
    """

    notes: tuple[str, ...]
    actors: int | None
    report: Any

    def check(self, trainer: Trainer) -> None:
        """Raises a `UserError` before the training if an evaluation will not be possible."""
        ...

    def due(self, trainer: Trainer) -> bool:
        """Returns whether the epoch that has ended is evaluated."""
        ...

    def after_epoch(self, trainer: Trainer) -> dict[str, float]:
        """Evaluates the network after an epoch; returns metrics for the epoch's record."""
        ...

    def at_end(self, trainer: Trainer) -> None:
        """Evaluates the finished run, unless its folder has the report already."""
        ...


EvaluatorBuilder = Callable[[Config, Dataset], Evaluator]


def evaluator_of(config: Config, dataset: Dataset) -> Evaluator | None:
    """Returns the evaluator that a configuration asks for, or None.

    Raises:
        ConfigError: a setting of the evaluations is not allowed.
    """
    if config.robustness.every is None and config.robustness.at_end is None:
        return None
    return EVALUATORS["robustness"](config, dataset)
