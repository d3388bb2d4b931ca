"""Packs all tensors of a value into one numpy array, which Ray's object store need not copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes


class Place(NamedTuple):
    """Position of a tensor in the array."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class Packed(NamedTuple):
    """A value whose tensors are replaced by their places, and the bytes of the tensors (numpy lacks bfloat16)."""

    value: Any
    data: np.ndarray[Any, np.dtype[np.uint8]]

    @property
    def size(self) -> int:
        """Number of bytes of the tensors."""
        return int(self.data.nbytes)


def packed(value: Any) -> Packed:
    """Packs a value of nested dictionaries, lists and tuples that hold tensors."""
    found: list[tuple[int, Tensor]] = []
    end = 0

    def placed(part: Any) -> Any:
        nonlocal end
        if isinstance(part, Tensor):
            place = Place(part.dtype, tuple(part.shape), end)
            found.append((end, part))
            end += -(-part.numel() * part.element_size() // _ALIGNMENT) * _ALIGNMENT
            return place
        if isinstance(part, dict):
            return {key: placed(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [placed(inner) for inner in part]
        if type(part) is tuple:
            return tuple(placed(inner) for inner in part)
        return part

    places = placed(value)
    data = np.empty(end, np.uint8)
    buffer = torch.from_numpy(data)
    for start, tensor in found:
        flat = tensor.detach().reshape(-1).view(torch.uint8)
        buffer[start : start + len(flat)] = flat
    return Packed(places, data)


def unpacked(sent: Packed, device: torch.device) -> Any:
    """Unpacks a value onto a device; its tensors are copies, since the store's memory is read-only."""
    buffer = torch.empty(len(sent.data), dtype=torch.uint8)
    buffer.numpy()[:] = sent.data
    buffer = buffer.to(device)

    def found(part: Any) -> Any:
        if isinstance(part, Place):
            count = part.dtype.itemsize
            for length in part.shape:
                count *= length
            return buffer[part.start : part.start + count].view(part.dtype).view(part.shape)
        if isinstance(part, dict):
            return {key: found(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [found(inner) for inner in part]
        if type(part) is tuple:
            return tuple(found(inner) for inner in part)
        return part

    return found(sent.value)
