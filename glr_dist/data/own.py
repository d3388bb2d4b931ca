"""Data of a function of the user's, or of a class of torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from glr_dist.config import OwnData
from glr_dist.data.arrays import splits
from glr_dist.data.folders import root_of
from glr_dist.data.split import Split
from glr_dist.errors import ConfigError
from glr_dist.imported import called, imported
from glr_dist.text import hint, one_line, shown
from glr_dist.trees import leaves, mapped

_PARTS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def own(data: OwnData, code: str | None) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Returns the parts of a data set that the user's function returns, and the names of its classes.

    The function returns {"train": (x, y), "validation": (x, y), "test": (x, y)} of arrays, tensors, or trees of them,
    or a torch `Dataset` in place of a pair; or only one pair or `Dataset`; or scikit-learn's `Bunch`.
    `torchvision:NAME` is a class of torchvision.datasets.

    Raises:
        ConfigError: the function does not exist, fails, or returns something else.
    """
    if data.name.startswith("torchvision:"):
        found: Any = _of_torchvision(data)
    else:
        found = called(imported(data.name, "data.name", code), data.name, data.arguments, "data")
    if isinstance(found, Mapping) and "data" in found and "target" in found:  # scikit-learn
        found = found["data"], found["target"]
    if not isinstance(found, Mapping):
        found = {"train": found}
    parts = {}
    for part, names in _PARTS.items():
        for name in names:
            if name in found:
                parts[part] = _pair(found[name], data, part)
    if "train" not in parts:
        held = ", ".join(map(repr, found)) or "nothing"
        raise ConfigError(f"data.name: {data.name} returns {held}, but not 'train'")
    return splits(parts, f"data.name: {data.name}")


def _of_torchvision(data: OwnData) -> dict[str, Any]:
    from torchvision import datasets

    name = data.name.partition(":")[2]
    kind = getattr(datasets, name, None)
    if not isinstance(kind, type):
        raise ConfigError(f"data.name: torchvision.datasets has no {name!r}; {hint(name, datasets.__all__)}")
    known = list(inspect.signature(kind).parameters)
    for key in data.arguments:
        if key not in known:
            raise ConfigError(
                f"data.{shown(key)[1:-1]}: is not an argument of {name}; {hint(key, known, listed='it takes')}"
            )
    given: dict[str, Any] = {"root": str(root_of(data)), "download": data.download}
    given = {key: value for key, value in given.items() if key in known} | data.arguments
    if "train" in known:
        asked: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in known and "split" not in data.arguments:
        asked = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
    else:
        asked = {"train": {}}
    parts: dict[str, Any] = {}
    for part, choice in asked.items():
        try:
            parts[part] = kind(**given | choice)
        except ValueError as error:  # a split that the class does not have
            if part == "train":
                raise ConfigError(f"data.name: {name} refuses its arguments ({one_line(error)})") from None
        except Exception as error:
            raise ConfigError(
                f"data.name: {name} cannot be loaded from {given.get('root')} ({one_line(error)})"
            ) from None
    return parts


def _pair(found: Any, data: OwnData, part: str) -> Any:
    """Returns the inputs and targets of a pair or a torch `Dataset`."""
    if not isinstance(found, TorchDataset):
        return found
    pixels = getattr(found, "data", None)
    labels = next((getattr(found, name) for name in ("targets", "labels") if hasattr(found, name)), None)
    if isinstance(pixels, (Tensor, np.ndarray)) and labels is not None and getattr(found, "transform", None) is None:
        return pixels, labels if isinstance(labels, Tensor) else np.asarray(labels)
    number = len(found)  # type: ignore[arg-type]
    examples = [_example(found[index], data, part) for index in range(number)]
    if not examples:
        raise ConfigError(f"data.name: the part {part!r} of {data.name} is empty")
    return _stacked([x for x, _ in examples], data), _stacked([y for _, y in examples], data)


def _example(example: Any, data: OwnData, part: str) -> tuple[Any, Any]:
    if not (isinstance(example, (tuple, list)) and len(example) == 2):
        raise ConfigError(
            f"data.name: an example of {part!r} of {data.name} is {shown(type(example).__name__)}; it must be "
            "(input, target)"
        )
    return _tensors(example[0], data), _tensors(example[1], data)


def _tensors(value: Any, data: OwnData) -> Any:
    """Returns an input or target as a tree of tensors; an image of Pillow becomes its pixels."""
    if isinstance(value, Mapping):
        return {key: _tensors(part, data) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_tensors(part, data) for part in value)
    if hasattr(value, "convert"):
        pixels = np.asarray(value.convert("RGB" if data.channels == 3 else "L"))
        return (
            torch.from_numpy(pixels.copy()).permute(2, 0, 1)
            if pixels.ndim == 3
            else torch.from_numpy(pixels.copy())[None]
        )
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"data.name: {data.name} holds a {type(value).__name__}, not numbers or images") from None


def _stacked(trees: list[Any], data: OwnData) -> Any:
    columns = list(zip(*(leaves(tree) for tree in trees), strict=True))
    try:
        stacked = iter([torch.stack(column) for column in columns])
    except RuntimeError as error:
        raise ConfigError(f"data.name: the examples of {data.name} differ in shape ({one_line(error)})") from None
    return mapped(lambda leaf: next(stacked), trees[0])
