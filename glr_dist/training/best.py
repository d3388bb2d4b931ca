"""The best epoch of a run: the one with the highest validation accuracy; ties go to the earliest.

The test set does not influence the choice: it is read once, after the last epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glr_dist.errors import CheckpointError
from glr_dist.training import checkpoint


def best_record(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the metrics of the best epoch.

    Args:
        history: the metrics of at least one epoch, oldest first.
    """
    return max(history, key=lambda record: record["validation_accuracy"])  # `max` returns the earliest of several


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
