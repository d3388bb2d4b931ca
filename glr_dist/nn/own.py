"""Networks of the user's own, or of another package, from the section `model` of a configuration."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from glr_dist.config import OwnModel
from glr_dist.errors import ConfigError
from glr_dist.imported import called, imported
from glr_dist.nn.fixing import fixed
from glr_dist.nn.opening import opened


def own_module(
    model: OwnModel, shape: Sequence[int], classes: int, stream: torch.Generator, code: str | None
) -> nn.Module:
    """Returns the module that an import path names, with initial weights that only `stream` decides.

    Parameters named `shape` or `input_shape`, and `classes` or `num_classes`, that the section does not give are those
    of the data. torchvision's builders, which pass further arguments on, get `num_classes` unless they load weights.

    Args:
        model: the section.
        shape: shape of one input.
        classes: number of classes, or of the values that are predicted.
        stream: seeds the global generators while the module is built; they are restored afterwards.
        code: the folder of the configuration.

    Raises:
        ConfigError: the class or function does not exist, fails, or does not return a module.
    """
    function = imported(model.name, "model.name", code)
    reserved = {"opened", "fixed", "output"}
    arguments = {key: value for key, value in model.arguments.items() if key not in reserved}
    if model.name.startswith("torchvision.models") and "weights" not in arguments:
        arguments.setdefault("num_classes", classes)
    shape = tuple(shape)
    with _seeded(int(torch.randint(2**62, (), generator=stream))):
        module = called(
            function,
            model.name,
            arguments,
            "model",
            shape=shape,
            input_shape=shape,
            classes=classes,
            num_classes=classes,
        )
        if not isinstance(module, nn.Module):
            raise ConfigError(f"model.name: {model.name} returns a {type(module).__name__}, not a torch.nn.Module")
        if model.fixed:
            module, _ = fixed(module, batch_norm="shared" if model.fixed == "shared" else "group")
        if model.opened:
            module = opened(module)
    return module.cpu()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of torch, numpy and Python, and restores them afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
