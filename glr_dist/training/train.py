"""Entry points of training: from a configuration to a trainer or to a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glr_dist.config import Config
from glr_dist.training.trainer import Trainer


def trainer_of(config: Config, out: Path, *, resume: bool = False) -> Trainer:
    """Returns the trainer for the configuration's executor; takes the arguments of `Trainer` and raises its errors."""
    if config.execution.kind == "replicas":
        from glr_dist.training.replicas import ReplicasTrainer  # importing Ray takes a second

        return ReplicasTrainer(config, out, resume=resume)
    return Trainer(config, out, resume=resume)


def train(config: Config, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains as configured and returns the summary.

    Takes the arguments of `Trainer`; raises the errors of `Trainer` and `Trainer.run`.
    """
    return trainer_of(config, out, resume=resume).run()
