"""Inputs to predict for: files of images, arrays and tables that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from glr_dist.config import Data
from glr_dist.data.arrays import splits
from glr_dist.data.decoded import image
from glr_dist.errors import ConfigError
from glr_dist.text import one_line, shown
from glr_dist.trees import Tree, leaves


def inputs_of(words: Sequence[Path], data: Data, shape: torch.Size) -> tuple[list[str], Tree]:
    """Returns a name for each input, and the inputs as a network takes them.

    Args:
        words: images, folders of images, .npy, .npz and .pt files of inputs (`x` in the last two), or .csv and .parquet
            tables; all of one kind.
        data: the section `data` of the run, with the settings of decoding and the target of a table.
        shape: shape of one input.

    Raises:
        ConfigError: a file is missing or damaged, or its inputs have another shape.
    """
    names: list[str] = []
    parts: list[Tensor] = []
    for word in words:
        if not word.exists():
            raise ConfigError(f"{word}: does not exist")
        files = sorted(p for p in word.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS) if word.is_dir() else [word]
        if not files:
            raise ConfigError(f"{word}: the folder holds no image")
        for file in files:
            x = _image_of(file, data, shape) if file.suffix.lower() in IMG_EXTENSIONS else _rows_of(file, data)
            if x.shape[1:] != shape:
                raise ConfigError(f"{file}: an input has shape {list(x.shape[1:])}, the network takes {list(shape)}")
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


def _rows_of(file: Path, data: Data) -> Tensor:
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
            import pandas as pd

            frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
            targets = [data.target] if isinstance(data.target, str) else list(data.target or ())
            x = frame.drop(columns=[column for column in targets if column in frame]).to_numpy(np.float32)
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
    split = parts["train"]
    assert len(leaves(split.images)) == 1
    found: Tensor = split.batch(slice(None))[0]
    return found
