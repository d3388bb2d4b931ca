"""Data sets as whole uint8 tensors: digits (embedded), MNIST, Fashion-MNIST; batches are rows by index.

Shapes: images [N, C, H, W] uint8, labels [N] int64; a batch x [B, C, H, W] in [0, 1].
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glr_dist.config import Data
from glr_dist.errors import ConfigError
from glr_dist.streams import Key, Role, generator
from glr_dist.text import one_line

if TYPE_CHECKING:
    from torchvision.datasets import MNIST


@dataclass(frozen=True)
class Split:
    """Images with labels. `top` is the pixel value that becomes 1."""

    images: Tensor
    labels: Tensor
    top: int

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The same split on a device."""
        return Split(self.images.to(device), self.labels.to(device), self.top)

    def rows(self, index: Tensor | slice) -> Split:
        """The examples of these numbers."""
        return Split(self.images[index], self.labels[index], self.top)

    def batch(self, index: Tensor | slice, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Inputs x [B, C, H, W] in [0, 1] and targets y [B]."""
        return self.images[index].to(dtype) / self.top, self.labels[index]


@dataclass(frozen=True)
class Dataset:
    """The three parts: parameters are fitted on `train`, choices made on `validation`, results read off `test`."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int

    @property
    def shape(self) -> torch.Size:
        """The shape of one image."""
        return self.train.images.shape[1:]


def root_of(data: Data) -> Path:
    """The absolute folder of the data: `data.root`, else $GLR_DATA, else ./data."""
    return Path(data.root or os.environ.get("GLR_DATA") or "data").expanduser().resolve()


def load(data: Data) -> Dataset:
    """The data set of a configuration, split by keyed permutations.

    Raises:
        ConfigError: the data is missing, cannot be fetched, or is damaged.
    """
    if data.name == "digits":
        whole = _digits()
        order = _permutation(len(whole), data, "test")
        held_out = round(data.test * len(whole))
        train, test = whole.rows(order[held_out:]), whole.rows(order[:held_out])
    else:
        train, test = (_idx(data, train=part) for part in (True, False))
    order = _permutation(len(train), data, "validation")
    held_out = max(1, round(data.validation * len(train)))
    if held_out >= len(train):
        raise ConfigError(f"data.validation: {data.validation} leaves no training example of {len(train)}")
    classes = int(train.labels.max()) + 1
    return Dataset(data.name, train.rows(order[held_out:]), train.rows(order[:held_out]), test, classes)


def _permutation(size: int, data: Data, part: str) -> Tensor:
    block = ("test", "validation").index(part)
    return torch.randperm(size, generator=generator(Key(data.split_seed, block=block, role=Role.SPLIT)))


def _digits() -> Split:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (UCI, Alpaydin & Kaynak)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    return Split(images, torch.from_numpy(digits.target).to(torch.int64), 16)


def _idx(data: Data, *, train: bool) -> Split:
    """The training or test set of MNIST or Fashion-MNIST, by torchvision."""
    from torchvision.datasets import MNIST, FashionMNIST

    kind = {"mnist": MNIST, "fashion_mnist": FashionMNIST}[data.name]
    root = root_of(data)
    part = "train" if train else "test"
    folder = root / kind.__name__ / "raw"
    try:
        loaded = kind(str(root), train=train, download=False)
    except Exception as error:
        if "not found" in str(error):
            return _checked(_fetched(kind, data, root, train=train), folder, train=train)
        raise ConfigError(f"data.root: the {part} files in {folder} are damaged ({_reason(error)})") from None
    return _checked(loaded, folder, train=train)


def _checked(loaded: MNIST, folder: Path, *, train: bool) -> Split:
    images, labels, part = loaded.data, loaded.targets, "train" if train else "test"
    expected = (60_000 if train else 10_000, 28, 28)
    if images.shape != expected or labels.shape != expected[:1] or not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        raise ConfigError(
            f"data.root: the {part} files in {folder} are damaged ({tuple(images.shape)} images and "
            f"{len(labels)} labels up to {int(labels.max())}; {expected} and labels 0-9 are right)"
        )
    return Split(images[:, None], labels.to(torch.int64), 255)


def _fetched(kind: type[MNIST], data: Data, root: Path, *, train: bool) -> MNIST:
    if not data.download:
        raise ConfigError(
            f"data.root: no {data.name} in {root}; set data.root or GLR_DATA to its folder, or data.download=true"
        )
    try:
        return kind(str(root), train=train, download=True)
    except Exception as error:
        raise ConfigError(
            f"data.root: no {data.name} in {root}, and it could not be fetched ({_reason(error)}); set data.root or "
            "GLR_DATA to a folder that holds it"
        ) from None


def _reason(error: Exception) -> str:
    return one_line(error)
