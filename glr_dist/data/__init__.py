"""Data sets, split into training, validation and test examples.

Shapes: images [N, C, H, W] uint8, labels [N] int64; a batch x [B, C, H, W] in [0, 1]. Other inputs and targets are any
tree of batch-first tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

import torch
from torch import Tensor

from glr_dist.config import Data, OwnData
from glr_dist.data.folders import located, root_of
from glr_dist.data.split import Dataset, Split
from glr_dist.errors import ConfigError
from glr_dist.losses import IGNORED
from glr_dist.registry import DATASETS
from glr_dist.sizes import held_out
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import leaves

__all__ = ["Dataset", "Loader", "Split", "load", "located", "root_of"]

# The section `data`, its path absolute -> the parts of a data set, and the names of its classes (empty if they are
# numbers). The part "train" must be there; "validation" and "test" are split off it if they are missing.
Loader = Callable[[Data], tuple[Mapping[str, Split], tuple[str, ...]]]

_IN_MEMORY = 2**28  # bytes up to which a part that is split is copied, which makes its batches contiguous


def load(data: Data, code: str | None = None) -> Dataset:
    """Loads the data set of a configuration and splits it by keyed permutations.

    Args:
        data: the section.
        code: the folder of the configuration, in which code and files of the user's own are looked for.

    Raises:
        ConfigError: the data is missing, cannot be downloaded, or is damaged; or a split would be empty.
    """
    parts: Mapping[str, Split]
    if isinstance(data, OwnData):
        from glr_dist.data.own import own

        parts, names = own(data, code)
    else:
        parts, names = DATASETS[data.name](located(data, code))
    for part in ("train", "validation", "test"):
        if part in parts and len(parts[part]) == 0:
            raise ConfigError(f"data.name: the part {part!r} of {data.name} is empty")
    train, validation, test = parts["train"], parts.get("validation"), parts.get("test")
    given = [part for part in (train, validation, test) if part is not None]
    _check_classes(given, data, names)
    classes = _classes(given, names)
    if test is None:
        test, train = _held_out(train, data, "test")
    if validation is None:
        validation, train = _held_out(train, data, "validation")
    return Dataset(data.name, train, validation, test, classes, names, tuple(_notes(train, classes, names)))


def _held_out(whole: Split, data: Data, part: str) -> tuple[Split, Split]:
    """Splits off the share `data.test` or `data.validation`; returns it and the rest."""
    number = held_out(data, part, len(whole))
    stream = generator(Key(data.split_seed, block=("test", "validation").index(part), role=Role.SPLIT))
    order = torch.randperm(len(whole), generator=stream)
    take = whole.rows if whole.bytes <= _IN_MEMORY else whole.view
    return take(order[:number]), take(order[number:])


def _classes(parts: list[Split], names: tuple[str, ...]) -> int:
    """Returns the number of classes in all parts (a small part may lack one), or of the values of a target."""
    targets = [part.targets() for part in parts]
    first = targets[0]
    if names:
        return len(names)
    if isinstance(first, Tensor) and first.dtype is torch.int64:
        return max(int(target.max()) for target in targets) + 1
    found = leaves(first)[0]
    return found.shape[1] if found.dim() == 2 else 1


def _check_classes(parts: list[Split], data: Data, names: tuple[str, ...]) -> None:
    """Refuses negative classes of tokens and pixels, and examples that are all of one class.

    Raises:
        ConfigError: names the class.
    """
    targets = [part.targets() for part in parts]
    if not all(isinstance(y, Tensor) and y.dtype is torch.int64 for y in targets):
        return
    if below := [int(y.min()) for y in (y[(y < 0) & (y != IGNORED)] for y in targets) if len(y)]:
        raise ConfigError(
            f"data.name: the class {below[0]} in {data.name} is not allowed: classes from 0 on, or {IGNORED} for none"
        )
    if all(y.dim() == 1 for y in targets) and len(found := torch.unique(torch.cat(targets)).tolist()) == 1:
        only = names[found[0]] if names else str(found[0])
        raise ConfigError(f"data.name: all examples of {data.name} are of the class {only!r}; it takes two or more")


def _notes(train: Split, classes: int, names: tuple[str, ...]) -> list[str]:
    """Returns lines about classes that got other numbers, and about classes without a training example."""
    labels = train.targets()
    if not (isinstance(labels, Tensor) and labels.dtype is torch.int64):
        return []
    notes = []
    if names and all(name.removeprefix("-").isdecimal() for name in names):
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        notes.append(f"the classes {shown} have the numbers 0 to {classes - 1} in the loss and in the outputs")
    found = set(torch.unique(labels[labels != IGNORED]).tolist())
    if number := classes - len(found):
        missing = islice((index for index in range(classes) if index not in found), 5)
        listed = ", ".join(names[index] if names else str(index) for index in missing) + (", …" if number > 5 else "")
        notes.append(f"no training example of {number} of {classes} classes ({listed})")
    return notes
