"""Dropout whose masks come from the keyed streams of the pass that runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from torch import Tensor, nn

# Uniforms of the current pass: (module, x) -> values in (0, 1) of the shape of x. Set by `network.Network.run`.
Uniforms = Callable[[nn.Module, Tensor], Tensor]
KEYED: ContextVar[Uniforms | None] = ContextVar("glr_dist_keyed_uniforms", default=None)


class Dropout(nn.Module):
    """Zeroes each element with probability p in training mode and scales the rest by 1 / (1 - p).

    Unlike `torch.nn.Dropout` it reads no global state: an example keeps one mask in a shared pass and in all its
    redraws, the same on every worker. In evaluation mode it is the identity.

    Args:
        p: probability that an element is zeroed, in [0, 1).

    Raises:
        ValueError: p is outside [0, 1).
        RuntimeError: called in training mode outside an estimate, where no keyed stream exists.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p {p} is not allowed: 0 <= p < 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keyed = KEYED.get()
        if keyed is None:
            raise RuntimeError("glr_dist.nn.Dropout in training mode runs inside GLR.estimate only: call .eval() first")
        return x * (keyed(self, x) >= self.p) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
