"""The way into a run: the trainer that a configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glr_dist.config import Config
from glr_dist.training.trainer import Trainer


def trainer_of(settings: Config, out: Path, *, resume: bool = False) -> Trainer:
    """The trainer that the configuration asks for; arguments and errors as of `Trainer`."""
    if settings.execution.kind == "replicas":
        from glr_dist.training.replicas import Replicas  # Ray takes a second to import

        return Replicas(settings, out, resume=resume)
    return Trainer(settings, out, resume=resume)


def train(settings: Config, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains as configured and returns the summary; arguments and errors as of `Trainer` and its `run`."""
    return trainer_of(settings, out, resume=resume).run()
