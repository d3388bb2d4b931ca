"""Keyed Gaussian noise on the inputs of training, for every estimator: the same on any number of workers.

Shapes: x a tree of inputs [N, …].
"""

from __future__ import annotations

import torch
from torch import Tensor

from glr_dist.config import InputNoise
from glr_dist.errors import ConfigError
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import Tree, leaves, mapped


def check_inputs(x: Tree) -> None:
    """Refuses inputs that are all whole numbers.

    Raises:
        ConfigError: noise cannot be added to any of them.
    """
    if not any(leaf.is_floating_point() for leaf in leaves(x)):
        raise ConfigError("noise.input: the inputs are whole numbers, to which no noise can be added; leave it out")


def with_input_noise(x: Tree, scale: float, seed: int, step: int) -> Tree:
    """Returns x + σ ε with Gaussian ε, one draw for each input of a step; values are not clipped.

    Args:
        x: inputs; tensors of whole numbers stay as they are.
        scale: σ.
        seed: seed of the run.
        step: number of the step.
    """
    number = 0

    def noisy(leaf: Tensor) -> Tensor:
        nonlocal number
        number += 1
        if not leaf.is_floating_point() or scale == 0:
            return leaf
        stream = generator(Key(seed, step=step, site=number - 1, role=Role.INPUT_NOISE), leaf.device)
        return leaf + scale * torch.randn(leaf.shape, generator=stream, dtype=leaf.dtype, device=leaf.device)

    return mapped(noisy, x)


def scale_after(noise: InputNoise, epochs: int) -> float:
    """Returns σ after the given number of finished epochs: it grows linearly from 0 over the first `ramp` epochs."""
    return noise.scale if epochs >= noise.ramp else noise.scale * epochs / noise.ramp
