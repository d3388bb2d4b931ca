"""Inputs to predict for: files of images, arrays and tables that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from glr_dist.config import Data
from glr_dist.data.arrays import splits
from glr_dist.data.decoded import image
from glr_dist.data.folders import located
from glr_dist.data.split import Split
from glr_dist.data.tables import read_table
from glr_dist.errors import ConfigError
from glr_dist.text import one_line, shown
from glr_dist.trees import Tree


def inputs_of(words: Sequence[Path], data: Data, train: Split, code: str | None) -> tuple[list[str], Tree]:
    """Returns a name for each input, and the inputs as a network takes them.

    Args:
        words: images, folders of images, .npy, .npz and .pt files of inputs (`x` in the last two), or .csv and .parquet
            tables; all of one kind.
        data: the section `data` of the run, with the settings of decoding and the target of a table.
        train: the training examples, whose type and shape the inputs must have.
        code: the folder of the configuration.

    Raises:
        ConfigError: a file is missing or damaged, or its inputs have another shape or type.
    """
    if not isinstance(train.images, Tensor):
        raise ConfigError(
            "the network takes several inputs, files hold one; use glr_dist.load_run(…).predict in Python"
        )
    shape = train.images.shape[1:]
    names: list[str] = []
    parts: list[Tensor] = []
    for word in words:
        if not word.exists():
            raise ConfigError(f"{word}: does not exist")
        files = (
            sorted(p for p in word.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS and not p.name.startswith("."))
            if word.is_dir()
            else [word]
        )
        if not files:
            raise ConfigError(f"{word}: the folder holds no image")
        for file in files:
            encoded = file.suffix.lower() in IMG_EXTENSIONS
            x = _image_of(file, data, shape) if encoded else _rows_of(file, data, code)
            if x.shape[1:] != shape:
                raise ConfigError(f"{file}: an input has shape {list(x.shape[1:])}, the network takes {list(shape)}")
            x = x if encoded else _like(x, train.images, train.top, file)
            names += [str(file)] if len(x) == 1 else [f"{file}[{index}]" for index in range(len(x))]
            parts.append(x)
    return names, torch.cat(parts)


def _image_of(file: Path, data: Data, shape: torch.Size) -> Tensor:
    """Returns an image [1, C, H, W] in [0, 1]."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(f"{file}: is an image, the network takes inputs of shape {list(shape)}")
    found = image(file, data.model_copy(update={"channels": shape[0]}))
    if isinstance(found, str):
        raise ConfigError(found)
    return torch.from_numpy(np.ascontiguousarray(found))[None].float() / 255


def _like(x: Tensor, trained: Tensor, top: int | None, file: Path) -> Tensor:
    """Returns inputs in the type and the units of those that the network was trained on.

    Raises:
        ConfigError: they are pixel values out of range, or not the integers that it takes.
    """
    if trained.dtype is torch.uint8:
        assert top is not None
        whole = not x.is_floating_point()
        low, high = x.min().item(), x.max().item()
        if low < 0 or high > (top if whole else 1):
            raise ConfigError(
                f"{file}: the pixels reach from {low:g} to {high:g}; integers from 0 to {top} are allowed, or real "
                "numbers from 0 to 1"
            )
        return x.float() / top if whole else x.float()
    if trained.is_floating_point():
        return x.float()
    if x.is_floating_point():
        raise ConfigError(f"{file}: holds real numbers; the network takes integers")
    return x.to(torch.int64)


def _rows_of(file: Path, data: Data, code: str | None) -> Tensor:
    """Returns the inputs [N, …] in a file of arrays or a table."""
    try:
        if file.suffix == ".npy":
            x = np.load(file, allow_pickle=False)
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                x = arrays["x"]
        elif file.suffix in (".pt", ".pth"):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
            x = loaded if isinstance(loaded, Tensor) else loaded["x"]
        elif file.suffix in (".csv", ".parquet"):
            x = _columns(file, data, code).to_numpy(np.float64)
        else:
            raise ConfigError(f"{file}: is not an image, .npy, .npz, .pt, .csv or .parquet")
    except ConfigError:
        raise
    except KeyError:
        raise ConfigError(f"{file}: does not hold an array named x") from None
    except Exception as error:
        raise ConfigError(f"{file}: cannot be read ({one_line(error)})") from None
    number = len(x) if getattr(x, "ndim", 0) else 0
    if number == 0:
        raise ConfigError(f"{file}: holds no input ({shown(type(x).__name__)})")
    parts, _ = splits({"train": (x, torch.zeros(number))}, str(file))
    found = parts["train"].images
    assert isinstance(found, Tensor)
    return found


def _columns(file: Path, data: Data, code: str | None) -> pd.DataFrame:
    """Returns the inputs of a table; of a run on a table, in the order of its columns.

    Raises:
        ConfigError: the table lacks a column, or has one that the run's table does not have.
    """
    frame = read_table(file)
    targets = [data.target] if isinstance(data.target, str) else list(data.target or ())
    inputs = frame.drop(columns=[column for column in targets if column in frame])
    if data.name != "table":
        return inputs
    path = located(data, code).path
    assert path is not None
    names = [column for column in read_table(Path(path)).columns if column not in targets]
    for column in [*names, *inputs.columns]:
        if (column in names) != (column in inputs):
            kind = "lacks the column" if column in names else "has the column"
            raise ConfigError(f"{file}: {kind} {str(column)!r}; the network takes {', '.join(map(str, names))}")
    return inputs[names]
