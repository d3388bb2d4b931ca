"""Noise laws, samplers of redraws, and keyed streams of randomness.

Shapes: R directions, n examples (one example block), D units of a site (its logits, flattened).
"""

from __future__ import annotations

import hashlib
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from glr_dist.errors import ConfigError

# ---------------------------------------------------------------- keyed streams


class Role(IntEnum):
    """What a stream is used for: streams of different roles never coincide."""

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


class Key(NamedTuple):
    """The name of one stream: everything that it depends on, and nothing else."""

    seed: int
    step: int = 0
    shared_pass: int = 0
    site: int = 0
    block: int = 0
    examples: int = 0
    role: Role = Role.SHARED

    def digest(self, size: int) -> bytes:
        """`size` bytes that are a pure function of the key (SHAKE-128)."""
        return hashlib.shake_128(struct.pack("<7q", *self)).digest(size)


# The words of a fresh Mersenne Twister: what precedes and follows its 624 words of state stays as it is.
_WORDS = slice(3, 627)
_FRESH = torch.Generator().get_state().numpy().view(np.uint64).copy()


def generator(key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator whose stream is a pure function of `key`.

    On the CPU `manual_seed` would keep 32 bits of the key only, so the whole state of 624 words is written;
    the CUDA generator uses all 64 bits of its seed.
    """
    device = torch.device(device)
    stream = torch.Generator(device)
    if device.type == "cpu":
        state = _FRESH.copy()
        state[_WORDS] = np.frombuffer(key.digest(624 * 4), dtype="<u4")
        stream.set_state(torch.from_numpy(state.view(np.uint8)))
    else:
        stream.manual_seed(int.from_bytes(key.digest(8), "little"))
    return stream


def uniforms(shape: Sequence[int], stream: torch.Generator) -> Tensor:
    """Float64 uniforms on the open interval (0, 1): an inverse CDF of them is always finite."""
    u = torch.rand(tuple(shape), generator=stream, dtype=torch.float64, device=stream.device)
    return u.clamp_(min=2.0**-54)  # rand draws multiples of 2^-53 from [0, 1)


# ---------------------------------------------------------------- laws


@dataclass(frozen=True)
class Noise(ABC):
    """Noise that a network's sites add to their logits: v = z + scale · ε.

    Args:
        scale: σ > 0 in units of the logits; a mapping of site-name patterns gives one for each site.
        learn: "none", or a learnable log σ for each "site" or each "unit" of a site.
        floor: the least σ that learning may reach.

    Raises:
        ConfigError: a scale or the floor is not positive, or `learn` is unknown.
    """

    scale: float | Mapping[str, float] = 1.0
    learn: str = "none"
    floor: float = 1e-3
    law: ClassVar[str]

    def __post_init__(self) -> None:
        scales = self.scale if isinstance(self.scale, Mapping) else {"": self.scale}
        for name, value in [
            *((f"scale {name}".strip(), value) for name, value in scales.items()),
            ("floor", self.floor),
        ]:
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"noise {name}: {value} is not allowed: a finite number > 0")
        if self.learn not in ("none", "site", "unit"):
            raise ConfigError(f"noise learn: {self.learn!r} is not allowed: 'none', 'site' or 'unit'")

    def sample(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        """ε of unit scale, drawn from `stream`."""
        return self.quantile(uniforms(shape, stream)).to(dtype)

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The inverse CDF of the law at u in (0, 1)."""

    @abstractmethod
    def score(self, eps: Tensor) -> Tensor:
        """s(ε) = -d/dε log p(ε), elementwise."""


@dataclass(frozen=True)
class Gaussian(Noise):
    """p(ε) = exp(-ε²/2) / √(2π), score ε."""

    law: ClassVar[str] = "gaussian"

    def sample(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.randn(tuple(shape), generator=stream, dtype=dtype, device=stream.device)

    def quantile(self, u: Tensor) -> Tensor:
        eps: Tensor = torch.special.ndtri(u)
        return eps

    def score(self, eps: Tensor) -> Tensor:
        return eps


@dataclass(frozen=True)
class Laplace(Noise):
    """p(ε) = exp(-|ε|) / 2, score sign(ε). The law of the paper's experiments."""

    law: ClassVar[str] = "laplace"

    def quantile(self, u: Tensor) -> Tensor:
        return torch.where(u < 0.5, (2 * u).log(), -(2 * (1 - u)).log())

    def score(self, eps: Tensor) -> Tensor:
        return eps.sign()


@dataclass(frozen=True)
class Logistic(Noise):
    """p(ε) = e^-ε / (1 + e^-ε)², score tanh(ε/2)."""

    law: ClassVar[str] = "logistic"

    def quantile(self, u: Tensor) -> Tensor:
        eps: Tensor = torch.special.logit(u)
        return eps

    def score(self, eps: Tensor) -> Tensor:
        return (eps / 2).tanh()


LAWS: dict[str, type[Noise]] = {law.law: law for law in (Gaussian, Laplace, Logistic)}


# ---------------------------------------------------------------- samplers of redraws


class Rows(NamedTuple):
    """A block of directions: rows start … stop of the `total` of one site, shared pass and example block."""

    block: int
    start: int
    stop: int
    total: int


def iid(noise: Noise, key: Key, rows: Rows, n: int, units: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Independent ε [R, n, D]."""
    stream = generator(key._replace(block=rows.block, role=Role.REDRAW), device)
    return noise.sample((rows.stop - rows.start, n, units), stream, dtype)


@lru_cache(maxsize=8)  # the pair blocks of a frame, and the example blocks, ask for the same one
def _frame(key: Key, rows: int, units: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`rows` orthonormal rows [rows, D], uniform (Haar) on the Stiefel manifold."""
    normals = torch.randn(units, rows, generator=generator(key), dtype=torch.float64)
    q, r = torch.linalg.qr(normals)
    q = q * r.diagonal().sign()  # the signs make Q Haar
    frame: Tensor = q.T.contiguous().to(device, dtype)
    return frame


def orthogonal(
    noise: Noise, key: Key, rows: Rows, n: int, units: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """ε [R, n, D], each row exactly N(0, I): frames of up to D mutually orthogonal rows.

    ε_rn = χ_rn · (q_r ∘ signs_n): the frame q is the examples' own but for their random signs, and each row has
    its own χ_D radius. Frames follow each other; the last may have fewer rows than D.
    """
    stream = generator(key._replace(block=rows.block, role=Role.RADIUS), device)
    shapes = torch.full((rows.stop - rows.start, n), units / 2, dtype=torch.float64, device=device)
    radii = (2 * torch._standard_gamma(shapes, generator=stream)).sqrt().to(dtype)  # χ² is a gamma variable
    pieces = []
    for frame in range(rows.start // units, (rows.stop - 1) // units + 1):
        first = frame * units
        frame_key = key._replace(block=frame, examples=0, role=Role.FRAME)
        q = _frame(frame_key, min(units, rows.total - first), units, dtype, device)
        q = q[max(rows.start - first, 0) : rows.stop - first]
        bits = torch.empty(n, units, dtype=dtype, device=device)
        signs = bits.random_(0, 2, generator=generator(key._replace(block=frame, role=Role.SIGN), device))
        pieces.append(q[:, None, :] * (2 * signs - 1))
    eps = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return eps.mul_(radii[..., None])


_BITS = 52  # of a uniform: what a float64 holds exactly
_SOBOL_BITS = 30  # of a Sobol coordinate; the examples' shifts fill the rest


def sobol(noise: Noise, key: Key, rows: Rows, n: int, units: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """ε [R, n, D] from a scrambled Sobol set of `rows.total` points in D dimensions.

    The set is scrambled (random linear matrix and digital shift) once for an example block, and each example adds
    a digital shift of its own, so that every point of every example has exactly the law of the noise.

    Raises:
        ConfigError: more units than there are Sobol dimensions.
    """
    if units > qmc.Sobol.MAXDIM:
        raise ConfigError(f"estimator.sampler: 'sobol' reaches {qmc.Sobol.MAXDIM} units, a site has {units}; use 'iid'")
    wide = int.from_bytes(key._replace(block=0, role=Role.SCRAMBLE).digest(16), "little")
    rng = np.random.default_rng(wide)
    engine = qmc.Sobol(units, scramble=True, bits=_SOBOL_BITS, rng=rng)
    if rows.start:
        engine.fast_forward(rows.start)
    first, rest = engine.random(1), engine.random(rows.stop - rows.start - 1)  # a first draw of 1 never warns
    grid = torch.from_numpy(np.concatenate([first, rest]) * 2.0**_SOBOL_BITS).to(device, torch.int64)
    grid <<= _BITS - _SOBOL_BITS
    stream = generator(key._replace(block=0, role=Role.SHIFT), device)
    shift = torch.empty(n, units, dtype=torch.int64, device=device).random_(0, 2**_BITS, generator=stream)
    u = ((grid[:, None, :] ^ shift).double() + 0.5) * 2.0**-_BITS
    return noise.quantile(u).to(dtype)


Sampler = Callable[[Noise, Key, Rows, int, int, torch.dtype, torch.device], Tensor]
SAMPLERS: dict[str, Sampler] = {"iid": iid, "orthogonal": orthogonal, "sobol": sobol}
