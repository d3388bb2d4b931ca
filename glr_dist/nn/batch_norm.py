"""Batch normalization whose statistics are those of a shared pass, so that a redraw changes one example alone."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor, nn

# Statistics of the current pass: (module, compute) -> those of the module's call, from the pass that a redraw repeats
# or else from `compute`. Set by `network.Network.run`.
Statistics = Callable[[nn.Module, Callable[[], Tensor]], Tensor]
STATISTICS: ContextVar[Statistics | None] = ContextVar("glr_dist_statistics", default=None)


class SharedBatchNorm(nn.Module):
    """Normalizes each channel: γ (x - mean) / √(var + eps) + β, in training mode with the statistics of a shared pass.

    The mean and variance [C] are those of an example block in the shared pass; redraws and copies see them as
    constants. The objective is therefore that of a network with these statistics fixed, step by step: the gradient
    does not contain the effect of a parameter on the statistics, which that of `nn.BatchNorm2d` does. The running
    statistics, which evaluation mode uses, move once a step. `joint`, which has no shared pass, refuses the module.

    Args:
        channels: C, the second dimension of the input [N, C, …].
        eps: added to the variance.
        momentum: weight of a step in the running statistics; None for their plain average.
        affine: True for γ and β.

    Reference:
        Ioffe and Szegedy, Batch Normalization, ICML 2015.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            statistics = STATISTICS.get()
            mean, var, _ = statistics(self, lambda: moments(x)) if statistics else moments(x)
        channel = [1, -1, *[1] * (x.dim() - 2)]
        x = (x - mean.view(channel)) * (var + self.eps).rsqrt().view(channel)
        if self.weight is None or self.bias is None:
            return x
        return x * self.weight.view(channel) + self.bias.view(channel)

    def move(self, statistics: Tensor) -> None:
        """Moves the running statistics by those of a step [3, C]: mean, variance, unbiased variance."""
        self.num_batches_tracked += 1
        weight = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(statistics[0], weight)
        self.running_var.lerp_(statistics[2], weight)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps:g}, momentum={self.momentum}, affine={self.weight is not None}"


def moments(x: Tensor) -> Tensor:
    """Returns mean, variance and unbiased variance of each channel [3, C] of x [N, C, …]."""
    values = x.transpose(0, 1).flatten(1)
    var, mean = torch.var_mean(values, 1, correction=0)
    count = values.shape[1]
    return torch.stack([mean, var, var * (count / max(count - 1, 1))])
