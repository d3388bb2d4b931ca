"""Losses: `loss(outputs [B, …], targets [B, …]) -> [B]`, one value per example, never reduced."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glr_dist.errors import UserError
from glr_dist.registry import LOSSES

__all__ = ["LOSSES", "Loss", "cross_entropy", "per_example", "zero_one"]

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns -log softmax(outputs)[target] [B] of class scores [B, C] and class numbers [B]."""
    # Several times faster on a CPU than torch's own, which first writes the whole log-softmax.
    return outputs.logsumexp(-1) - outputs.gather(-1, targets[:, None])[:, 0]


def zero_one(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 where argmax(outputs) differs from the target, else 0 [B]; outputs [B, C], targets [B]."""
    return (outputs.argmax(-1) != targets).to(outputs.dtype)


def per_example(values: Tensor, batch: int) -> Tensor:
    """Returns `values` if they are one loss for each of `batch` examples.

    Raises:
        UserError: they are not; the message gives their shape or type.
    """
    if not isinstance(values, Tensor) or values.shape != (batch,):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"loss: must return one value per example, shape ({batch},) for {batch} examples, got {found}")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())
