"""Sizes of the built-in data sets and networks, from the configuration alone. Does not import torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from glr_dist.config import Data, Model
from glr_dist.errors import ConfigError


@dataclass(frozen=True)
class DataSize:
    """Size of a data set before it is split.

    Attributes:
        shape: shape of one image, [C, H, W].
        classes: number of classes.
        train: number of training images.
        test: number of test images; None if a share of the training images is held out for testing.
    """

    shape: tuple[int, ...]
    classes: int
    train: int
    test: int | None


DATA_SIZES = {
    "digits": DataSize((1, 8, 8), 10, 1_797, None),
    "mnist": DataSize((1, 28, 28), 10, 60_000, 10_000),
    "fashion_mnist": DataSize((1, 28, 28), 10, 60_000, 10_000),
    "kmnist": DataSize((1, 28, 28), 10, 60_000, 10_000),
    "cifar10": DataSize((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": DataSize((3, 32, 32), 100, 50_000, 10_000),
    "svhn": DataSize((3, 32, 32), 10, 73_257, 26_032),
}


def held_out(data: Data, part: str, whole: int) -> int:
    """Returns the number of examples that are held out for `part`, "validation" or "test", from a set of `whole`.

    Raises:
        ConfigError: no example would be held out, or none left for training.
    """
    share: float = getattr(data, part)
    number = round(share * whole)
    if not 0 < number < whole:
        raise ConfigError(
            f"data.{part}: {share} of {whole} examples leaves no {part if number == 0 else 'training'} example"
        )
    return number


def split_sizes(data: Data) -> dict[str, int] | None:
    """Returns the number of training, validation and test images; None if the data set is not built in.

    Raises:
        ConfigError: a split would be empty.
    """
    if (size := DATA_SIZES.get(data.name)) is None:
        return None
    test = held_out(data, "test", size.train) if size.test is None else size.test
    rest = size.train - (test if size.test is None else 0)
    validation = held_out(data, "validation", rest)
    return {"training": rest - validation, "validation": validation, "test": test}


def parameter_count(model: Model, data: Data) -> int | None:
    """Returns the number of parameters of a network; None if the network or the data set is not built in."""
    size = DATA_SIZES.get(data.name)
    if model.name != "mlp" or size is None:
        return None
    return mlp_parameters(math.prod(size.shape), model.hidden, size.classes, model.bias)


def mlp_parameters(inputs: int, hidden: Sequence[int], classes: int, bias: str = "all") -> int:
    """Returns the number of weights and biases of a multilayer perceptron; `bias` is "all" or "first"."""
    widths = [inputs, *hidden, classes]
    biases = widths[1:] if bias == "all" else widths[1:2]
    return sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(widths)) + sum(biases)
