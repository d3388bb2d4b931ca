"""A trained run, read back from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glr_dist import data
from glr_dist.build import device_of, network_of
from glr_dist.config import Config, Execution, build
from glr_dist.data import Dataset
from glr_dist.errors import ConfigError
from glr_dist.glr import GLR
from glr_dist.runs import CheckpointName, RunFolder
from glr_dist.text import shown
from glr_dist.training.best import load_best
from glr_dist.training.checkpoint import load_newest, restore_network
from glr_dist.trees import Tree, mapped


@dataclass(frozen=True)
class TrainedRun:
    """A run's network, configuration, data set and metrics; calling it returns the network's outputs without noise.

    Attributes:
        folder: the run's files.
        config: its configuration.
        data: its data set.
        net: the network of the checkpoint, in evaluation mode.
        epoch: number of epochs that the network was trained for.
        metrics: the metrics of each epoch up to `epoch`, oldest first; `pandas.DataFrame(run.metrics)` is a table.
    """

    folder: RunFolder
    config: Config
    data: Dataset
    net: GLR
    epoch: int
    metrics: list[dict[str, Any]]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.net.model.parameters()).device

    def __call__(self, x: Tree) -> Tensor:
        """Returns the outputs of inputs, such as the class scores [N, classes] of images [N, C, H, W] in [0, 1].

        The network computes without noise or gradients, on its own device.
        """

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, self.net.network.dtype if tensor.is_floating_point() else tensor.dtype)

        with torch.no_grad():
            outputs: Tensor = self.net(mapped(moved, x))
            return outputs

    def predict(self, x: Tree) -> Tensor:
        """Returns the predicted class of each input [N], token [N, T] or pixel [N, *P], by the targets of the data.

        For targets that are not classes, the outputs themselves.
        """
        return self.classes_of(self(x)) if self.data.of_classes else self(x)

    def classes_of(self, outputs: Tensor) -> Tensor:
        """Returns the class with the highest of the scores [N, C], [N, T, C] or [N, C, *P]."""
        if outputs.dim() == 2:
            return outputs.argmax(-1)
        x, y = self.data.train.batch(slice(0, 1))  # tells which dimension is that of the classes
        return outputs.argmax(-1 if self(x).shape[:-1] == y.shape else 1)


def load_run(
    folder: str | Path,
    device: str | None = None,
    *,
    checkpoint: CheckpointName = "newest",
    dataset: Dataset | None = None,
) -> TrainedRun:
    """Loads a run: the network of a checkpoint, its configuration, data set and metrics.

    Args:
        folder: the run's folder, as `glr-dist train` wrote it.
        device: "auto", "cpu" or "cuda[:N]"; by default the run's own.
        checkpoint: "newest", or "best": the epoch with the highest validation accuracy (of equal ones, the earliest).
        dataset: the run's data, if it is loaded already.

    Raises:
        ConfigError: the folder does not hold a run, the device is missing, or the data is.
        CheckpointError: the run has no checkpoint, or the one asked for is missing or damaged.
    """
    files = RunFolder(folder)
    config = files.config()
    if checkpoint not in ("newest", "best"):
        raise ConfigError(f"checkpoint: {shown(checkpoint)} is not allowed: 'newest' or 'best'")
    where = device_of(build(Execution, {"device": device or config.execution.device}, "execution."))
    path, state = (load_best if checkpoint == "best" else load_newest)(files.checkpoints, where)
    dataset = dataset or data.load(config.data, config.code)
    net = network_of(config, dataset, where, measure=False)
    restore_network(net, state, path)
    return TrainedRun(files, config, dataset, net.eval(), state["epoch"], state["history"])
