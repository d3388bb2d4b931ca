"""Linear layers: z = x Wᵀ + b.  Shapes: x [N, *, I], delta [N, *, O] -> weight [O, I], bias [O]."""

from __future__ import annotations

from torch import Tensor, nn


def linear(module: nn.Module, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Returns ∂J/∂W = δᵀ x and ∂J/∂b = Σ δ."""
    flat = delta.reshape(-1, delta.shape[-1])
    return {"weight": flat.T @ x.reshape(-1, x.shape[-1]), "bias": flat.sum(0)}
