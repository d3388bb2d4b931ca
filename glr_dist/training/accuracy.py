"""Accuracy and loss of the noise-free network on a split."""

from __future__ import annotations

import torch
from torch import Tensor

from glr_dist.checks import all_finite
from glr_dist.data import Split
from glr_dist.execution.inline import one_thread
from glr_dist.glr import GLR
from glr_dist.losses import Loss

_BATCH = 1000  # examples per piece of work


def accuracy_and_loss(net: GLR, split: Split, loss: Loss) -> tuple[float, float]:
    """Returns the accuracy and the mean loss of the noise-free network, which is put in evaluation mode.

    Args:
        net: the network.
        split: images and labels, on the network's device.
        loss: the per-example loss.

    Raises:
        FloatingPointError: the outputs are not finite.
    """
    net.eval()

    def of_batch(start: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x, y = split.batch(slice(start, start + _BATCH))
            outputs = net(x)
            if not all_finite(outputs):
                raise FloatingPointError(f"the network's outputs are not finite after step {net.step}")
            return (outputs.argmax(-1) == y).sum(), loss(outputs, y).double().sum()

    with one_thread():
        parts = list(net.executor.map(of_batch, range(0, len(split), _BATCH)))
    correct, total = (torch.stack(part).sum().item() for part in zip(*parts, strict=True))
    return correct / len(split), total / len(split)
