"""A run's network as its folder holds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glr_dist import config, data
from glr_dist.build import device_of, network_of
from glr_dist.config import Config
from glr_dist.data import Dataset
from glr_dist.errors import CheckpointError, ConfigError
from glr_dist.glr import GLR
from glr_dist.text import one_line
from glr_dist.training import checkpoint


@dataclass(frozen=True)
class Trained:
    """What a run's folder holds.

    Attributes:
        settings: the run's configuration.
        dataset: its data.
        net: the network of the newest checkpoint, in evaluation mode.
        epoch: after how many epochs.
    """

    settings: Config
    dataset: Dataset
    net: GLR
    epoch: int


def load_trained(folder: Path, device: str | None = None, dataset: Dataset | None = None) -> Trained:
    """The network of a run's newest checkpoint.

    Args:
        folder: of the run.
        device: "auto", "cpu" or "cuda[:N]" instead of the run's own.
        dataset: its data, where it is loaded already.

    Raises:
        ConfigError: the folder is no run, or its data is missing.
        CheckpointError: there is no checkpoint, or the newest one is damaged: an older one would be another network.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: is no run of glr-dist train, it has no config.yaml")
    settings = config.load_config(folder / "config.yaml")
    files = checkpoint.listed(folder / "checkpoints")
    if not files:
        raise CheckpointError(f"{folder / 'checkpoints'}: holds no checkpoint")
    where = device_of(config.build(config.Execution, {"device": device or settings.execution.device}, "execution."))
    state = checkpoint.load(files[0], where)
    dataset = dataset or data.load(settings.data)
    net = network_of(settings, dataset, where)
    try:
        net.load_state_dict(state["network"])
    except (KeyError, RuntimeError) as error:
        reason = one_line(error)
        raise CheckpointError(f"{files[0]}: is of another network ({reason})") from None
    return Trained(settings, dataset, net.eval(), state["epoch"])
