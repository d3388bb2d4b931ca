"""Arrays of the user's: their types and shapes become those of a split, and what cannot be trained on is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glr_dist.config import Data
from glr_dist.data.split import Split
from glr_dist.errors import ConfigError, UserError
from glr_dist.text import one_line, shown
from glr_dist.trees import Tree, count, leaves

_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}


def arrays(data: Data) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The arrays in the file `data.path`, .npz or .pt: `x` and `y`, or such a pair for each part, as `x_train`.

    A .pt file holds a mapping of tensors, and is read without unpickling code.

    Raises:
        ConfigError: the file is damaged or holds other names.
    """
    assert data.path is not None
    path = Path(data.path)
    found = _read(path)
    parts: dict[str, Any] = {}
    for part, names in _NAMES.items():
        for name in names:
            if f"x_{name}" in found and f"y_{name}" in found:
                parts[part] = found[f"x_{name}"], found[f"y_{name}"]
    if "x" in found and "y" in found and "train" not in parts:
        parts["train"] = found["x"], found["y"]
    if "train" not in parts:
        held = ", ".join(map(str, found)) or "nothing"
        raise ConfigError(f"data.path: {path} holds {held}; it must hold x and y, or x_train and y_train")
    return splits(parts, f"data.path: {path}")


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix in (".pt", ".pth"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(loaded, Mapping):
                return dict(loaded)
            raise ConfigError(f"data.path: {path} holds a {type(loaded).__name__}; it must hold a mapping of tensors")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"data.path: {path} cannot be read ({one_line(error)})") from None
    raise ConfigError(f"data.path: {path} is not allowed: .npz or .pt (data.name 'table' reads .csv and .parquet)")


def splits(parts: Mapping[str, Any], where: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Returns splits of pairs of inputs and targets, and the names of the classes (empty if they are numbers).

    - uint8 inputs are pixel values, 255 stands for 1; images [N, H, W] and [N, H, W, C] get their channels first.
    - Other integers stay as they are (token ids, class numbers); floats become float32.
    - Real targets [N] become [N, 1], the shape of a network's outputs.
    - Targets that are text, or integers with gaps, become class numbers in sorted order.

    Args:
        parts: "train" and optionally "validation" and "test": (inputs, targets).
        where: begins error messages.

    Raises:
        ConfigError: a part is not such a pair, its lengths differ, or it holds NaN or infinity.
    """
    pairs = {part: _pair(pair, part, where) for part, pair in parts.items()}
    inputs = {part: _mapped(_input, x, f"{where}: the inputs of {part}") for part, (x, _) in pairs.items()}
    names, targets = _targets({part: y for part, (_, y) in pairs.items()}, where)
    made = {}
    for part in pairs:
        x, y = inputs[part], targets[part]
        for what, tree in (("inputs", x), ("targets", y)):
            for leaf in leaves(tree):
                bad = ~torch.isfinite(leaf.flatten(1) if leaf.dim() > 1 else leaf[:, None]).all(1)
                if leaf.is_floating_point() and bad.any():
                    index = int(bad.nonzero()[0])
                    raise ConfigError(f"{where}: the {what} of {part} are not finite at example {index}")
        try:
            number = count((x, y), part)
        except UserError as error:
            raise ConfigError(f"{where}: {error}") from None
        if number == 0:
            raise ConfigError(f"{where}: the part {part!r} is empty")
        pixels = any(leaf.dtype is torch.uint8 for leaf in leaves(x))
        made[part] = Split(x, y, 255 if pixels else None)
    shapes = {part: [leaf.shape[1:] for leaf in leaves(split.images)] for part, split in made.items()}
    for part, shape in shapes.items():
        if shape != shapes["train"]:
            here, there = (" and ".join(str(list(each)) for each in shapes[each]) for each in (part, "train"))
            raise ConfigError(f"{where}: an input of {part} has shape {here}, one of train {there}")
    return made, names


def _mapped(function: Any, tree: Any, where: str) -> Tree:
    """Returns a tree with `function(array, where)` in the place of its arrays and tensors."""
    if isinstance(tree, Mapping):
        return {key: _mapped(function, value, where) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_mapped(function, value, where) for value in tree)
    return function(tree, where)


def _pair(pair: Any, part: str, where: str) -> tuple[Any, Any]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        return pair[0], pair[1]
    raise ConfigError(f"{where}: the part {part!r} is {shown(type(pair).__name__)}; it must be (inputs, targets)")


def _tensor(array: Any, where: str) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach().cpu()
    try:
        found = np.asarray(array)
        if found.dtype.kind == "u" and found.dtype != np.uint8:
            found = found.astype(np.int64)
        return torch.from_numpy(np.require(found, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} cannot be a tensor ({one_line(error)})") from None


def _input(array: Any, where: str) -> Tensor:
    x = _tensor(array, where)
    if x.dim() == 0:
        raise ConfigError(f"{where} are one number, not one input for each example")
    if x.dtype is torch.uint8:
        if x.dim() == 3:
            x = x[:, None]
        elif x.dim() == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
            x = x.permute(0, 3, 1, 2).contiguous()
        return x
    if x.dtype in (torch.bool, torch.float64, torch.float16, torch.bfloat16):
        return x.float()
    return x if x.is_floating_point() else x.to(torch.int64)


def _targets(given: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], dict[str, Tree]]:
    """Returns the names of the classes, and the targets of each part."""
    if not all(_is_text(y) for y in given.values()):
        trees = {part: _mapped(_target, y, f"{where}: the targets of {part}") for part, y in given.items()}
        return _numbered(trees)
    labels = {part: [str(label) for label in np.asarray(y).tolist()] for part, y in given.items()}
    names = tuple(sorted({label for part in labels.values() for label in part}))
    number = {name: index for index, name in enumerate(names)}
    return names, {part: torch.tensor([number[label] for label in values]) for part, values in labels.items()}


def _is_text(y: Any) -> bool:
    return not isinstance(y, (Tensor, Mapping, tuple)) and np.asarray(y).dtype.kind in "USOT"


def _target(array: Any, where: str) -> Tensor:
    y = _tensor(array, where)
    if y.dtype is torch.bool or y.is_floating_point():
        return y.float() if y.dim() > 1 else y.float()[:, None]
    return y.to(torch.int64)


def _numbered(trees: dict[str, Tree]) -> tuple[tuple[str, ...], dict[str, Tree]]:
    """Numbers integer classes with gaps, such as 1, 2, 5, from 0 on."""
    if not all(isinstance(y, Tensor) and y.dtype is torch.int64 and y.dim() == 1 for y in trees.values()):
        return (), trees
    known = torch.unique(torch.cat(list(trees.values())))
    if torch.equal(known, torch.arange(len(known))) or (known.min() >= 0 and known.max() < 2 * len(known)):
        return (), trees
    return tuple(str(value) for value in known.tolist()), {
        part: torch.searchsorted(known, y) for part, y in trees.items()
    }
