"""A part of a data set: examples with targets, in memory or mapped from a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from glr_dist.trees import Tree, count, leaves, mapped, taken

_CHUNK = 2**24  # bytes that are hashed at a time


@dataclass(frozen=True)
class Split:
    """Examples with targets.

    Attributes:
        images: the inputs, a tensor [N, …] or a tree of tensors; uint8 images are [N, C, H, W].
        labels: the targets [N, …]: class numbers (int64), or values.
        top: the value of a uint8 input that becomes 1; None if the inputs are used as they are.
        order: indices [n] of the stored examples that make up the split, in order; None for all of them. It spares a
            copy of inputs that are mapped from a file.
        device: where batches go, if the examples themselves do not fit there.
    """

    images: Tree
    labels: Tree
    top: int | None = None
    order: Tensor | None = None
    device: torch.device | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return count(self.labels, "targets") if self.order is None else len(self.order)

    def to(self, device: torch.device) -> Split:
        """Returns the split on a device; one that takes more than half of a GPU's free memory sends its batches."""
        if device.type == "cuda" and self.bytes > torch.cuda.mem_get_info(device)[0] / 2:
            return replace(self, device=device)

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        order = self.order if self.order is None else self.order.to(device)
        return replace(self, images=mapped(moved, self.images), labels=mapped(moved, self.labels), order=order)

    def rows(self, index: Tensor | slice) -> Split:
        """Returns a copy of the examples with the given indices; all of them are stored in this order."""
        if self.order is not None:
            index = self.order[index]
            return replace(self, images=taken(self.images, index), labels=taken(self.labels, index), order=None)
        return replace(self, images=taken(self.images, index), labels=taken(self.labels, index))

    def view(self, index: Tensor) -> Split:
        """Returns the examples with the given indices, without a copy of their inputs."""
        return replace(self, order=index if self.order is None else self.order[index])

    def targets(self) -> Tree:
        """Returns the targets of the split's examples."""
        return self.labels if self.order is None else taken(self.labels, self.order)

    def batch(self, index: Tensor | slice, dtype: torch.dtype = torch.float32) -> tuple[Tree, Tree]:
        """Returns inputs x [B, …], uint8 ones divided by `top`, and targets y [B, …]."""
        if self.order is not None:
            index = self.order[index]
        x, y = taken(self.images, index), taken(self.labels, index)
        if self.device is not None:
            device = self.device
            x, y = (mapped(lambda tensor: tensor.to(device, non_blocking=True), part) for part in (x, y))
        if self.top is None:
            return x, y
        top = self.top
        return mapped(lambda tensor: tensor.to(dtype) / top if tensor.dtype is torch.uint8 else tensor, x), y

    @property
    def bytes(self) -> int:
        """Size of the stored examples."""
        return sum(leaf.numel() * leaf.element_size() for leaf in leaves((self.images, self.labels)))

    def digest(self) -> str:
        """Returns the SHA-256 of the inputs of all examples, in order."""
        digest: str = self._hashed(hashlib.sha256()).hexdigest()
        return digest

    def digest_with_targets(self) -> str:
        """Returns the SHA-256 of the inputs and targets of all examples, in order."""
        sha = self._hashed(hashlib.sha256())
        for leaf in leaves(self.targets()):
            sha.update(leaf.cpu().contiguous().numpy().tobytes())
        digest: str = sha.hexdigest()
        return digest

    def _hashed(self, sha: Any) -> Any:
        size = max(1, sum(leaf[:1].numel() * leaf.element_size() for leaf in leaves(self.images)))
        for start in range(0, len(self), step := max(1, _CHUNK // size)):
            index: Tensor | slice = slice(start, start + step)
            for leaf in leaves(taken(self.images, index if self.order is None else self.order[index])):
                sha.update(leaf.cpu().contiguous().numpy().tobytes())
        return sha


@dataclass(frozen=True)
class Dataset:
    """A data set: `train` for fitting parameters, `validation` for choices, `test` for the final figures.

    Attributes:
        name: its name in the configuration.
        train, validation, test: its parts.
        classes: number of classes, or of the values that are predicted for an example.
        names: names of the classes; empty if they are numbers.
        notes: what a user should know before training, one line each.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """Shape of one input; of several inputs, of the first one."""
        return leaves(self.train.images)[0].shape[1:]

    @property
    def of_classes(self) -> bool:
        """True if the targets are class numbers: of an example, a token or a pixel."""
        return isinstance(self.train.labels, Tensor) and self.train.labels.dtype is torch.int64

    @property
    def of_images(self) -> bool:
        """True if the inputs are images of pixel values, and the targets one class for each."""
        images = self.train.images
        pixels = isinstance(images, Tensor) and images.dtype is torch.uint8 and images.dim() == 4
        return pixels and self.of_classes and self.train.labels.dim() == 1
