"""Data sets that scikit-learn includes or torchvision downloads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from glr_dist.config import Data
from glr_dist.data.folders import root_of
from glr_dist.data.split import Split
from glr_dist.errors import ConfigError
from glr_dist.sizes import DATA_SIZES
from glr_dist.text import one_line

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

Parts = tuple[dict[str, Split], tuple[str, ...]]


def digits(data: Data) -> Parts:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn includes (UCI, Alpaydin & Kaynak)."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images).to(torch.uint8)[:, None]
    return {"train": Split(images, torch.from_numpy(loaded.target).to(torch.int64), 16)}, ()


def mnist(data: Data) -> Parts:
    """MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels (LeCun, Cortes & Burges)."""
    from torchvision.datasets import MNIST

    return _both_parts(MNIST, data)


def fashion_mnist(data: Data) -> Parts:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels (Xiao, Rasul & Vollgraf)."""
    from torchvision.datasets import FashionMNIST

    return _both_parts(FashionMNIST, data)


def kmnist(data: Data) -> Parts:
    """Kuzushiji-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels (Clanuwat et al.)."""
    from torchvision.datasets import KMNIST

    return _both_parts(KMNIST, data)


def cifar10(data: Data) -> Parts:
    """CIFAR-10: 50,000 training and 10,000 test colour images of 32 x 32 pixels (Krizhevsky)."""
    from torchvision.datasets import CIFAR10

    return _both_parts(CIFAR10, data)


def cifar100(data: Data) -> Parts:
    """CIFAR-100: 50,000 training and 10,000 test colour images of 32 x 32 pixels (Krizhevsky)."""
    from torchvision.datasets import CIFAR100

    return _both_parts(CIFAR100, data)


def svhn(data: Data) -> Parts:
    """Street View House Numbers: 73,257 training and 26,032 test colour images of 32 x 32 pixels (Netzer et al.)."""
    from torchvision.datasets import SVHN

    return _both_parts(SVHN, data)


def _both_parts(kind: type[Any], data: Data) -> Parts:
    return {part: _part(kind, data, train=part == "train") for part in ("train", "test")}, ()


def _part(kind: type[MNIST], data: Data, *, train: bool) -> Split:
    root = root_of(data)
    part = "training" if train else "test"
    folder = root / kind.__name__ / "raw" if data.name.endswith("mnist") else root
    try:
        loaded = _opened(kind, root, train=train, download=False)
    except Exception as error:
        if "not found" in str(error):
            return _checked(_downloaded(kind, data, root, train=train), data, folder, train=train)
        raise ConfigError(f"data.root: the {part} files in {folder} are damaged ({one_line(error)})") from None
    return _checked(loaded, data, folder, train=train)


def _opened(kind: type[Any], root: Path, *, train: bool, download: bool) -> Any:
    if kind.__name__ == "SVHN":
        return kind(str(root), split="train" if train else "test", download=download)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)  # the pickles of CIFAR
        return kind(str(root), train=train, download=download)


def _checked(loaded: Any, data: Data, folder: Path, *, train: bool) -> Split:
    images, labels = _tensors(loaded)
    part, size = "training" if train else "test", DATA_SIZES[data.name]
    expected, last = (size.train if train else size.test, *size.shape), size.classes - 1
    if images.shape != expected or labels.shape != expected[:1] or not 0 <= labels.min() <= labels.max() <= last:
        found = tuple(images.shape[:1] + images.shape[2:]) if size.shape[0] == 1 else tuple(images.shape)
        wanted = (expected[0], *expected[2:]) if size.shape[0] == 1 else expected
        raise ConfigError(
            f"data.root: the {part} files in {folder} are damaged ({found} images and "
            f"{len(labels)} labels up to {int(labels.max())}, expected {wanted} and labels 0-{last})"
        )
    return Split(images, labels.to(torch.int64), 255)


def _tensors(loaded: Any) -> tuple[Tensor, Tensor]:
    """Returns images [N, C, H, W] and labels [N] of a data set of torchvision."""
    images = torch.as_tensor(loaded.data)
    if images.dim() == 3:
        images = images[:, None]
    elif images.dim() == 4 and images.shape[-1] == 3:  # CIFAR; SVHN has its channels first
        images = images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(loaded.labels if hasattr(loaded, "labels") else loaded.targets)


def _downloaded(kind: type[MNIST], data: Data, root: Path, *, train: bool) -> Any:
    if not data.download:
        raise ConfigError(
            f"data.root: {data.name} is not in {root}; set data.root or GLR_DATA to its folder, or data.download=true"
        )
    try:
        return _opened(kind, root, train=train, download=True)
    except Exception as error:
        raise ConfigError(
            f"data.root: {data.name} is not in {root} and cannot be downloaded ({one_line(error)}); set data.root or "
            "GLR_DATA to a folder that contains it"
        ) from None
