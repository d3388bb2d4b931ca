"""2-D convolutions.  Shapes: x [N, C, H, W], delta [N, O, H', W'] -> weight [O, C/groups, kh, kw], bias [O]."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


def conv2d(module: nn.Module, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Returns ∂J/∂W, the correlation of x with δ, and ∂J/∂b = Σ δ over examples and positions."""
    assert isinstance(module, nn.Conv2d)
    padding = 0 if module.padding == "valid" else module.padding
    weight: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        x, module.weight.shape, delta, module.stride, padding, module.dilation, module.groups
    )
    return {"weight": weight, "bias": delta.sum((0, 2, 3))}
