"""The best epoch of a run: the one with the highest validation accuracy; ties go to the earliest.

Without class targets it is the one with the lowest validation loss, and with early stopping that of its metric.

The test set does not influence the choice: it is read once, after the last epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from glr_dist.errors import CheckpointError
from glr_dist.training import checkpoint
from glr_dist.training.scores import LOWER_IS_BETTER


def best_record(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the metrics of the best epoch.

    Args:
        history: the metrics of at least one epoch, oldest first.
    """
    return max(history, key=_score)  # `max` returns the earliest of several


def score_of(record: Mapping[str, Any], metric: str) -> float:
    """Returns what the best epoch maximises: a metric of the validation examples, negative if lower is better."""
    value: float = record[f"validation_{metric}"]
    return -value if metric in LOWER_IS_BETTER else value


def _score(record: Mapping[str, Any]) -> float:
    if "score" in record:
        score: float = record["score"]
        return score
    return score_of(record, "accuracy" if "validation_accuracy" in record else "loss")


def load_best(folder: Path, device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any]]:
    """Returns the file and state of the best checkpoint of a run.

    Args:
        folder: the folder of its checkpoints.
        device: where to load the tensors.

    Raises:
        CheckpointError: the newest or the best checkpoint is missing or damaged.
    """
    path, state = checkpoint.load_newest(folder, device)
    if not state["history"]:  # a warm start before its first epoch
        return path, state
    epoch = best_record(state["history"])["epoch"]
    if epoch == state["epoch"]:
        return path, state
    path = folder / checkpoint.name_of(epoch)
    if not path.exists():
        raise CheckpointError(
            f"{path}: is missing: the checkpoint of the best epoch ({epoch} of {state['epoch']}) was not kept"
        )
    return path, checkpoint.load(path, device)


def digest_of(folder: Path, epoch: int) -> str | None:
    """Returns the digest of the parameters after an epoch; None if its checkpoint is missing or damaged."""
    try:
        return checkpoint.digest(checkpoint.load(folder / checkpoint.name_of(epoch))["network"])
    except CheckpointError:
        return None
