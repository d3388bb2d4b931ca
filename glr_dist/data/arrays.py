"""Arrays of the user's: their types and shapes become those of a split, and what cannot be trained on is refused."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glr_dist.config import Data
from glr_dist.data.split import Split
from glr_dist.errors import ConfigError, UserError
from glr_dist.losses import IGNORED
from glr_dist.text import one_line, shown
from glr_dist.trees import Tree, count, leaves, mapped

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
            if (f"x_{name}" in found) != (f"y_{name}" in found):
                one, other = ("x", "y") if f"x_{name}" in found else ("y", "x")
                raise ConfigError(f"data.path: {path} holds {one}_{name} without {other}_{name}")
            if f"x_{name}" in found:
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
    for part in made:
        _check_alike(inputs[part], inputs["train"], part, "an input", where)
        _check_alike(targets[part], targets["train"], part, "a target", where)
    return made, names


def _check_alike(here: Tree, there: Tree, part: str, what: str, where: str) -> None:
    """Refuses a part whose examples have other shapes, types or names than those of the training part.

    Raises:
        ConfigError: says how both look.
    """
    kinds = [
        mapped(lambda leaf: (str(leaf.dtype).removeprefix("torch."), list(leaf.shape[1:])), each)
        for each in (here, there)
    ]
    if kinds[0] != kinds[1]:
        texts = [_listed(kind) for kind in kinds]
        raise ConfigError(f"{where}: {what} of {part} has {texts[0]}, one of train {texts[1]}; they must be alike")


def _listed(kind: Any) -> str:
    """Returns the types and shapes of a tree as text."""
    if isinstance(kind, Mapping):
        return " and ".join(f"{key!r}: {_listed(value)}" for key, value in kind.items())
    if isinstance(kind[0], str):
        return f"type {kind[0]} and shape {kind[1]}"
    return " and ".join(_listed(value) for value in kind)


def _mapped(function: Any, tree: Any, where: str) -> Tree:
    """Returns a tree with `function(array, where)` in the place of its arrays and tensors."""
    if isinstance(tree, Mapping):
        return {key: _mapped(function, value, where) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_mapped(function, value, where) for value in tree)
    return function(tree, where)


def _pair(pair: Any, part: str, where: str) -> tuple[Any, Any]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        x, y = (list(each) if _is_row(each) else each for each in pair)
        return x, y
    raise ConfigError(f"{where}: the part {part!r} is {shown(type(pair).__name__)}; it must be (inputs, targets)")


def _is_row(value: Any) -> bool:
    """True for a tuple of numbers or texts, one for each example, as opposed to a tuple of several inputs."""
    return isinstance(value, tuple) and all(isinstance(each, (str, Number, np.generic)) for each in value)


def _tensor(array: Any, where: str) -> Tensor:
    try:
        tensor = array.detach().cpu() if isinstance(array, Tensor) else _of_numpy(np.asarray(array))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} cannot be a tensor ({one_line(error)})") from None
    if tensor.is_complex():
        raise ConfigError(f"{where} are complex numbers; give their real and imaginary parts")
    return tensor


def _of_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


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
    if x.dtype is torch.float64 and x.dim() == 2 and len(x) > 1:
        lost = ((x != x[0]).any(0) & (x.float() == x[0].float()).all(0)).nonzero()
        if len(lost):
            raise ConfigError(
                f"{where} differ in column {int(lost[0]) + 1}, counted from 1, by less than float32 can hold (one is "
                f"{x[0, int(lost[0])].item():.17g}); subtract a constant"
            )
    if x.dtype in (torch.bool, torch.float64, torch.float16, torch.bfloat16):
        return x.float()
    return x if x.is_floating_point() else x.to(torch.int64)


def _targets(given: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], dict[str, Tree]]:
    """Returns the names of the classes, and the targets of each part."""
    text = [part for part, y in given.items() if _is_text(y)]
    if not text:
        trees = {part: _mapped(_target, y, f"{where}: the targets of {part}") for part, y in given.items()}
        return _numbered(trees, where)
    for part in given:
        if part not in text:
            raise ConfigError(f"{where}: the targets of {text[0]} are text, those of {part} are not")
    labels = {part: _labels(y, f"{where}: the targets of {part}") for part, y in given.items()}
    names = tuple(sorted({label for part in labels.values() for label in part}))
    number = {name: index for index, name in enumerate(names)}
    return names, {part: torch.tensor([number[label] for label in values]) for part, values in labels.items()}


def _labels(y: Any, where: str) -> list[str]:
    """Returns targets that are text, or objects of Python, as text."""
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ConfigError(f"{where} are text of shape {list(values.shape)}; one name for each example is allowed")
    missing = [index for index, label in enumerate(values.tolist()) if _is_missing(label)]
    if missing:
        raise ConfigError(f"{where} are missing at example {missing[0]} ({values[missing[0]]!r}); leave it out")
    return [str(label) for label in values.tolist()]


def _is_missing(label: Any) -> bool:
    """True for None, NaN, and the missing values of pandas."""
    return (
        label is None or type(label).__name__ in ("NAType", "NaTType") or (isinstance(label, float) and label != label)
    )


def _is_text(y: Any) -> bool:
    return not isinstance(y, (Tensor, Mapping, tuple)) and np.asarray(y).dtype.kind in "USOT"


def _target(array: Any, where: str) -> Tensor:
    y = _tensor(array, where)
    if y.dtype is torch.bool or y.is_floating_point():
        return y.float() if y.dim() > 1 else y.float()[:, None]
    return y.to(torch.int64)


def _numbered(trees: dict[str, Tree], where: str) -> tuple[tuple[str, ...], dict[str, Tree]]:
    """Numbers integer classes with gaps, such as 1, 2, 5, from 0 on."""
    if not all(isinstance(y, Tensor) and y.dtype is torch.int64 and y.dim() == 1 for y in trees.values()):
        return (), trees
    for part, y in trees.items():
        if (y == IGNORED).any():
            index = int((y == IGNORED).nonzero()[0])
            raise ConfigError(
                f"{where}: the target of example {index} of {part} is {IGNORED}, which means none; leave it out"
            )
    known = torch.unique(torch.cat(list(trees.values())))
    if torch.equal(known, torch.arange(len(known))) or (known.min() >= 0 and known.max() < 2 * len(known)):
        return (), trees
    return tuple(str(value) for value in known.tolist()), {
        part: torch.searchsorted(known, y) for part, y in trees.items()
    }
