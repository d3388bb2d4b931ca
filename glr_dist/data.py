"""Data sets as uint8 tensors, split into training, validation and test images.

Shapes: images [N, C, H, W] uint8, labels [N] int64; a batch x [B, C, H, W] in [0, 1].
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glr_dist.config import Data
from glr_dist.errors import ConfigError
from glr_dist.registry import DATASETS
from glr_dist.sizes import DATA_SIZES, held_out
from glr_dist.streams import Key, Role, generator
from glr_dist.text import one_line

if TYPE_CHECKING:
    from torchvision.datasets import MNIST


@dataclass(frozen=True)
class Split:
    """Images with labels.

    Attributes:
        images: [N, C, H, W] uint8.
        labels: [N] int64.
        top: the pixel value that becomes 1.
    """

    images: Tensor
    labels: Tensor
    top: int

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """Returns the split on a device."""
        return Split(self.images.to(device), self.labels.to(device), self.top)

    def rows(self, index: Tensor | slice) -> Split:
        """Returns the examples with the given indices."""
        return Split(self.images[index], self.labels[index], self.top)

    def batch(self, index: Tensor | slice, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Returns inputs x [B, C, H, W] in [0, 1] and targets y [B]."""
        return self.images[index].to(dtype) / self.top, self.labels[index]


@dataclass(frozen=True)
class Dataset:
    """A data set: `train` for fitting parameters, `validation` for choices, `test` for the final figures."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int

    @property
    def shape(self) -> torch.Size:
        """Shape of one image."""
        return self.train.images.shape[1:]


# The section `data` -> training set and test set, or (whole set, None) if the data set does not have a test set
Loader = Callable[[Data], tuple[Split, Split | None]]


def root_of(data: Data) -> Path:
    """Returns the absolute folder of the data: `data.root`, else $GLR_DATA, else ./data.

    Raises:
        ConfigError: it starts with the home of an unknown user.
    """
    root = Path(data.root or os.environ.get("GLR_DATA") or "data")
    try:
        return root.expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(f"data.root: {str(root)!r} is not a folder ({one_line(error)})") from None


def load(data: Data) -> Dataset:
    """Loads the data set of a configuration and splits it by keyed permutations.

    Raises:
        ConfigError: the data is missing, cannot be downloaded, or is damaged; or a split would be empty.
    """
    train, test = DATASETS[data.name](data)
    classes = int(train.labels.max()) + 1  # before the split: a small part may lack a class
    if test is None:
        test, train = _held_out(train, data, "test")
    validation, train = _held_out(train, data, "validation")
    return Dataset(data.name, train, validation, test, classes)


def _held_out(whole: Split, data: Data, part: str) -> tuple[Split, Split]:
    """Splits off the share `data.test` or `data.validation`; returns it and the rest."""
    number = held_out(data, part, len(whole))
    stream = generator(Key(data.split_seed, block=("test", "validation").index(part), role=Role.SPLIT))
    order = torch.randperm(len(whole), generator=stream)
    return whole.rows(order[:number]), whole.rows(order[number:])


def digits(data: Data) -> tuple[Split, None]:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn includes (UCI, Alpaydin & Kaynak)."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images).to(torch.uint8)[:, None]
    return Split(images, torch.from_numpy(loaded.target).to(torch.int64), 16), None


def mnist(data: Data) -> tuple[Split, Split]:
    """MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels (LeCun, Cortes & Burges)."""
    from torchvision.datasets import MNIST

    return _idx(MNIST, data, train=True), _idx(MNIST, data, train=False)


def fashion_mnist(data: Data) -> tuple[Split, Split]:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels (Xiao, Rasul & Vollgraf)."""
    from torchvision.datasets import FashionMNIST

    return _idx(FashionMNIST, data, train=True), _idx(FashionMNIST, data, train=False)


def _idx(kind: type[MNIST], data: Data, *, train: bool) -> Split:
    root = root_of(data)
    part = "training" if train else "test"
    folder = root / kind.__name__ / "raw"
    try:
        loaded = kind(str(root), train=train, download=False)
    except Exception as error:
        if "not found" in str(error):
            return _checked(_downloaded(kind, data, root, train=train), data, folder, train=train)
        raise ConfigError(f"data.root: the {part} files in {folder} are damaged ({one_line(error)})") from None
    return _checked(loaded, data, folder, train=train)


def _checked(loaded: MNIST, data: Data, folder: Path, *, train: bool) -> Split:
    images, labels, part, size = loaded.data, loaded.targets, "training" if train else "test", DATA_SIZES[data.name]
    expected, last = (size.train if train else size.test, *size.shape[1:]), size.classes - 1
    if images.shape != expected or labels.shape != expected[:1] or not 0 <= labels.min() <= labels.max() <= last:
        raise ConfigError(
            f"data.root: the {part} files in {folder} are damaged ({tuple(images.shape)} images and "
            f"{len(labels)} labels up to {int(labels.max())}, expected {expected} and labels 0-{last})"
        )
    return Split(images[:, None], labels.to(torch.int64), 255)


def _downloaded(kind: type[MNIST], data: Data, root: Path, *, train: bool) -> MNIST:
    if not data.download:
        raise ConfigError(
            f"data.root: {data.name} is not in {root}; set data.root or GLR_DATA to its folder, or data.download=true"
        )
    try:
        return kind(str(root), train=train, download=True)
    except Exception as error:
        raise ConfigError(
            f"data.root: {data.name} is not in {root} and cannot be downloaded ({one_line(error)}); set data.root or "
            "GLR_DATA to a folder that contains it"
        ) from None
