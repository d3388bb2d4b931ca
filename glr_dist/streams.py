"""Keyed streams: every random number is a pure function of a key, never of who draws it or when."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor


class Role(IntEnum):
    """Use of a stream; streams of different roles never coincide."""

    SHARED = 0
    REDRAW = 1
    FRAME = 2
    SIGN = 3
    RADIUS = 4
    SCRAMBLE = 5
    SHIFT = 6
    DROPOUT = 7
    SHUFFLE = 8
    SPLIT = 9
    INIT = 10
    CORRUPTION = 11
    ATTACK = 12
    INFERENCE = 13
    SEARCH = 14
    VERIFICATION = 15
    CERTIFICATE = 16
    INPUT_NOISE = 17
    QUADRATURE = 18
    AUGMENT = 20
    ADVERSARIAL = 21
    EXAMPLES = 22


class Key(NamedTuple):
    """Identifies one stream: its random numbers depend on nothing else.

    Attributes:
        seed: seed of the run.
        step: number of the step, or of the epoch.
        shared_pass: number of the shared pass.
        site: index of the site.
        block: number of the frame or of the block of directions.
        example_block: number of the block of examples.
        role: use of the stream.
    """

    seed: int
    step: int = 0
    shared_pass: int = 0
    site: int = 0
    block: int = 0
    example_block: int = 0
    role: Role = Role.SHARED

    def digest(self, size: int) -> bytes:
        """Returns `size` bytes that are a pure function of the key (SHAKE-128)."""
        return hashlib.shake_128(struct.pack("<7q", *self)).digest(size)

    def uniform(self) -> float:
        """Returns a number of [0, 1) that is a pure function of the key."""
        return (int.from_bytes(self.digest(8), "little") >> 11) * 2.0**-53


class _State(threading.local):
    """State of a fresh Mersenne Twister, whose 624 words are written for each stream; the other bytes stay."""

    def __init__(self) -> None:
        self.bytes = torch.Generator().get_state()
        self.words = self.bytes.numpy().view(np.uint64)[3:627]


_STATE = _State()


def generator(key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a torch generator whose stream is a pure function of `key`.

    On the CPU `manual_seed` would use only 32 bits of the key, so the whole state of 624 words is written; the CUDA
    generator uses all 64 bits of its seed.
    """
    device = torch.device(device)
    stream = torch.Generator(device)
    if device.type == "cpu":
        _STATE.words[:] = np.frombuffer(key.digest(624 * 4), dtype="<u4")
        stream.set_state(_STATE.bytes)  # copies it
    else:
        stream.manual_seed(int.from_bytes(key.digest(8), "little"))
    return stream


class _KeySequence(ISeedSequence):
    """Seed sequence that returns a key's digest; `Philox(key=…)` would first gather entropy that it does not use."""

    def __init__(self, key: Key) -> None:
        self._digest = key.digest(16)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray[Any, Any]:
        """Returns the first words of the key's digest."""
        return np.frombuffer(self._digest, dtype, n_words)


def numpy_generator(key: Key) -> np.random.Generator:
    """Returns a numpy generator whose stream is a pure function of `key`."""
    return np.random.Generator(np.random.Philox(_KeySequence(key)))  # type: ignore[arg-type]


def uniforms(shape: Sequence[int], stream: torch.Generator) -> Tensor:
    """Draws float64 uniforms on the open interval (0, 1), so that an inverse CDF of them is finite."""
    u = torch.rand(tuple(shape), generator=stream, dtype=torch.float64, device=stream.device)
    return u.clamp_(min=2.0**-54)  # rand draws multiples of 2^-53 from [0, 1)
