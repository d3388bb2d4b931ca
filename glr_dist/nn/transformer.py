"""torch's transformer layers for sequences first, [T, N, E], that run batch first inside: sites need [N, …]."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


def _swapped(x: Tensor) -> Tensor:
    return x.transpose(0, 1) if x.dim() == 3 else x  # an unbatched sequence [T, E] stays


class EncoderLayer(nn.TransformerEncoderLayer):
    """An `nn.TransformerEncoderLayer` of src [S, N, E] whose sites see [N, S, …]."""

    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _swapped(super().forward(_swapped(src), *args, **kwargs))


class DecoderLayer(nn.TransformerDecoderLayer):
    """An `nn.TransformerDecoderLayer` of tgt [T, N, E] and memory [S, N, E] whose sites see [N, T, …]."""

    def forward(self, tgt: Tensor, memory: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _swapped(super().forward(_swapped(tgt), _swapped(memory), *args, **kwargs))


def batch_first_inside(layer: nn.Module) -> nn.Module:
    """Returns a layer for sequences first as one that runs batch first inside; any other module unchanged.

    The new layer takes over the modules and attributes of the given one, which must not be used any more.
    """
    inside = {nn.TransformerEncoderLayer: EncoderLayer, nn.TransformerDecoderLayer: DecoderLayer}.get(type(layer))
    if inside is None or layer.self_attn.batch_first:  # type: ignore[union-attr]
        return layer
    new = inside.__new__(inside)
    new.__dict__ = layer.__dict__
    for name, attention in new._modules.items():
        if isinstance(attention, nn.MultiheadAttention):
            new._modules[name] = attention = copy.copy(attention)  # another layer may share it
            attention.batch_first = True
    return new
