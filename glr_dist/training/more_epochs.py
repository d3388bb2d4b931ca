"""Resuming with another number of epochs: bitwise identical to a run that had this number from the start."""

from __future__ import annotations

from pathlib import Path

from glr_dist.build import run_lengths
from glr_dist.config import Config
from glr_dist.errors import ConfigError


def check_schedule(before: Config, now: Config, folder: Path) -> None:
    """Refuses another number of epochs if the learning-rate schedule depends on it.

    Args:
        before: the run's configuration so far.
        now: the configuration that continues it.
        folder: the run's folder.

    Raises:
        ConfigError: the schedule depends on the number of epochs; the message names it.
    """
    if before.training.epochs == now.training.epochs or not (lengths := run_lengths(now.training)):
        return
    assert now.training.schedule is not None
    raise ConfigError(
        f"training.epochs: the run in {folder} has {before.training.epochs} epochs, not {now.training.epochs}, and "
        f"{now.training.schedule.name} depends on this number ({', '.join(lengths)} is the length of the run); "
        f"start another run from its parameters with model.weights={folder}"
    )


def check_trained(config: Config, epochs: int, folder: Path) -> None:
    """Refuses a configuration with fewer epochs than a run has trained.

    Raises:
        ConfigError: the configuration has fewer epochs; the message names both numbers.
    """
    if config.training.epochs < epochs:
        raise ConfigError(
            f"training.epochs: {config.training.epochs} is not allowed: the run in {folder} has already trained "
            f"{epochs} epochs"
        )
