"""Resuming a run with another number of epochs: the same bits as a run that had this number from the beginning."""

from __future__ import annotations

from pathlib import Path

from glr_dist.build import run_lengths
from glr_dist.config import Config
from glr_dist.errors import ConfigError


def check_schedule(before: Config, now: Config, folder: Path) -> None:
    """Refuses another number of epochs if the course of the learning rate depends on it.

    Args:
        before: the configuration of the run so far.
        now: the configuration that continues it.
        folder: the run's folder.

    Raises:
        ConfigError: names the schedule.
    """
    if before.training.epochs == now.training.epochs or not (lengths := run_lengths(now.training)):
        return
    assert now.training.schedule is not None
    raise ConfigError(
        f"training.epochs: the run in {folder} has {before.training.epochs}, not {now.training.epochs}, and the "
        f"learning rates of {now.training.schedule.name} depend on it ({', '.join(lengths)} is the length of the run); "
        f"begin another run from its parameters with model.weights={folder}"
    )


def check_trained(config: Config, epochs: int, folder: Path) -> None:
    """Refuses a configuration with fewer epochs than a run has trained.

    Raises:
        ConfigError: names both numbers.
    """
    if config.training.epochs < epochs:
        raise ConfigError(
            f"training.epochs: {config.training.epochs} is not allowed: the run in {folder} has already trained "
            f"{epochs} epochs"
        )
