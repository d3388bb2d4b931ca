"""Data of a function of the user's, or of a class of torchvision."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from glr_dist.config import Data, OwnData
from glr_dist.data.arrays import splits
from glr_dist.data.decoded import pixels
from glr_dist.data.folders import located, root_of
from glr_dist.data.split import Split
from glr_dist.errors import ConfigError
from glr_dist.imported import called, imported, parameters_of, place_of
from glr_dist.text import hint, one_line, shown
from glr_dist.trees import leaves, mapped

_MANY = 2**12  # examples below which no progress bar is shown
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
        found = _returned(data, code)
    if isinstance(found, Mapping) and "data" in found and "target" in found:  # scikit-learn
        found = found["data"], found["target"]
    if not isinstance(found, Mapping):
        found = {"train": found}
    parts = {}
    known = [name for names in _PARTS.values() for name in names]
    for key in found if "train" in found else ():
        if key not in known:
            raise ConfigError(
                f"data.name: {data.name} returns {key!r}, which is not a part; {hint(str(key), list(_PARTS))}"
            )
    for part, names in _PARTS.items():
        for name in names:
            if name in found:
                parts[part] = _pair(found[name], data, part)
    if "train" not in parts:
        held = ", ".join(map(repr, found)) or "nothing"
        raise ConfigError(f"data.name: {data.name} returns {held}, but not 'train'")
    return splits(parts, f"data.name: {data.name}")


def _returned(data: OwnData, code: str | None) -> Any:
    """Calls the user's function. Parameters that are named as settings of the section take their values."""
    function = imported(data.name, "data.name", code)
    known = parameters_of(function)
    for key in ("path", "target", "resize", "crop", "channels", "skip_corrupt"):
        if key not in known and getattr(data, key) != Data.model_fields[key].default:
            raise ConfigError(f"data.{key}: has no effect with data.name {data.name!r}; leave it out")
    settings = {key: getattr(data, key) for key in Data.model_fields if key in known and key not in ("name", "augment")}
    if data.path is not None:
        with suppress(ConfigError):  # what does not exist is for the function to judge
            settings["path"] = located(data, code).path
    given = {key: value for key, value in settings.items() if value is not None}
    return called(function, data.name, data.arguments, "data", **given)


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
    if _is_plain(found) and not (data.resize or data.crop or data.channels != 3):
        labels = next(getattr(found, name) for name in ("targets", "labels") if hasattr(found, name))
        return found.data, labels if isinstance(labels, Tensor) else np.asarray(labels)  # type: ignore[attr-defined]
    examples = []
    try:
        number = len(found)  # type: ignore[arg-type]
    except Exception as error:
        raise ConfigError(
            f"data.name: the part {part!r} of {data.name} is {type(found).__name__}, which does not give its length "
            f"({one_line(error)}); a Dataset with __len__ and __getitem__ is allowed"
        ) from None
    for index in tqdm(range(number), desc=f"reading {part}", file=sys.stderr, disable=number < _MANY or None):
        try:
            example = found[index]
        except Exception as error:
            raise ConfigError(
                f"data.name: reading example {index} of {part!r} of {data.name} failed {place_of(error)}"
            ) from None
        examples.append(_example(example, data, part))
    if not examples:
        raise ConfigError(f"data.name: the part {part!r} of {data.name} is empty")
    return _stacked([x for x, _ in examples], data), _stacked([y for _, y in examples], data)


def _is_plain(found: TorchDataset[Any]) -> bool:
    """True for a data set of torchvision whose examples are its arrays `data` and `targets`, unchanged."""
    arrays = isinstance(getattr(found, "data", None), (Tensor, np.ndarray))
    changed = any(getattr(found, name, None) is not None for name in ("transform", "target_transform", "transforms"))
    method = getattr(type(found), "__getitem__", None)
    of_torchvision = getattr(method, "__module__", "").startswith("torchvision.datasets.")
    return arrays and of_torchvision and not changed and (hasattr(found, "targets") or hasattr(found, "labels"))


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
        return torch.from_numpy(pixels(value, data, data.name).copy())
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"data.name: {data.name} holds a {type(value).__name__}, not numbers or images") from None


def _stacked(trees: list[Any], data: OwnData) -> Any:
    try:
        columns = list(zip(*(leaves(tree) for tree in trees), strict=True))
        stacked = iter([torch.stack(column) for column in columns])
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"data.name: the examples of {data.name} differ in shape ({one_line(error)})") from None
    return mapped(lambda leaf: next(stacked), trees[0])
