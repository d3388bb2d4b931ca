"""Samplers: the noise ε of a block of directions at one site.

Shapes: R directions of a block, n examples of an example block, D units of a site (its logits, flattened).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from glr_dist.errors import ConfigError
from glr_dist.noise import Noise
from glr_dist.streams import Key, Role, generator, numpy_generator


class DirectionBlock(NamedTuple):
    """Directions start … stop - 1 out of the `total` directions of one site, shared pass and example block."""

    number: int
    start: int
    stop: int
    total: int


def iid(
    noise: Noise, key: Key, block: DirectionBlock, n: int, units: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draws independent ε [R, n, D]."""
    stream = generator(key._replace(block=block.number, role=Role.REDRAW), device)
    return noise.sample((block.stop - block.start, n, units), stream, dtype)


_MOST_STEPS = 16  # maximum number of steps whose frames are drawn together
_MOST_TOGETHER = 2**13  # maximum number of elements of frames that are drawn together


def _frame(key: Key, rows: int, units: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draws `rows` orthonormal rows [rows, D], uniform (Haar) on the Stiefel manifold.

    All example blocks share it. Small frames of several steps are drawn together, which costs little more than one.
    """
    steps = max(1, min(_MOST_STEPS, _MOST_TOGETHER // (rows * units)))
    draw = _large_frames if steps == 1 else _small_frames
    # So that frames of another K, which may begin in the same window of steps, use another stream.
    window = key._replace(step=key.step // steps, example_block=rows)
    return draw(window, steps, rows, units, dtype, device)[key.step % steps]


def _frames(key: Key, steps: int, rows: int, units: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draws the frames of several steps [steps, rows, D]."""
    normals = torch.randn(steps, units, rows, generator=generator(key), dtype=dtype)
    q, r = torch.linalg.qr(normals.double())
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # the signs make Q Haar
    frames: Tensor = q.transpose(1, 2).contiguous().to(device, dtype)
    return frames


# Several blocks need the same frame.
_small_frames = lru_cache(maxsize=512)(_frames)
_large_frames = lru_cache(maxsize=8)(_frames)


def _chi(key: Key, shape: tuple[int, ...], degrees: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draws χ variables: χ² of k degrees of freedom is twice a gamma variable of shape k/2."""
    if device.type == "cpu":  # numpy needs half of torch's time
        precision = np.float64 if dtype == torch.float64 else np.float32
        drawn = numpy_generator(key).standard_gamma(degrees / 2, shape, dtype=precision)
        return torch.from_numpy(np.sqrt(2 * drawn)).to(dtype)
    shapes = torch.full(shape, degrees / 2, dtype=torch.float64, device=device)
    return torch._standard_gamma(shapes, generator=generator(key, device)).mul_(2).sqrt_().to(dtype)


def _bits(key: Key, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draws fair bits, 0 or 1, in uint8."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.uint8, device=device).random_(0, 2, generator=generator(key, device))
    number = math.prod(shape)
    drawn = np.frombuffer(key.digest(-(-number // 8)), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(drawn, count=number)).view(shape)


class Frames(NamedTuple):
    """Orthogonal directions in factors: ε_rn = χ_rn · (q_r ∘ (2 b_n - 1)), for the rows r of each frame.

    Consecutive frames with equally many rows R_f form a piece of F frames; the F · R_f of all pieces add up to R.

    Attributes:
        rows: q of the frames of each piece, or of parts of them [F, R_f, D].
        bits: b of the frames of each piece, 0 or 1 in uint8 [F, n, D].
        radii: χ [R, n].
    """

    rows: tuple[Tensor, ...]
    bits: tuple[Tensor, ...]
    radii: Tensor

    def eps(self) -> Tensor:
        """Returns ε [R, n, D]."""
        pieces = [
            (q[:, :, None, :] * (2 * bits.to(q) - 1)[:, None]).flatten(0, 1)
            for q, bits in zip(self.rows, self.bits, strict=True)
        ]
        eps = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return eps.mul_(self.radii[..., None])


def frames_of(block: DirectionBlock, units: int) -> list[tuple[int, int, int]]:
    """Returns the number of each frame that a block draws from, and the rows start … stop - 1 of the frame."""
    return [
        (frame, max(block.start - frame * units, 0), min(block.stop - frame * units, units))
        for frame in range(block.start // units, (block.stop - 1) // units + 1)
    ]


def orthogonal_frames(
    key: Key, block: DirectionBlock, n: int, units: int, dtype: torch.dtype, device: torch.device
) -> Frames:
    """Draws the factors of `orthogonal`."""
    radius_key = key._replace(block=block.number, role=Role.RADIUS)
    radii = _chi(radius_key, (block.stop - block.start, n), units, dtype, device)
    pieces: list[tuple[list[Tensor], list[Tensor]]] = []
    for frame, start, stop in frames_of(block, units):
        frame_key = key._replace(block=frame, role=Role.FRAME)
        q = _frame(frame_key, min(units, block.total - frame * units), units, dtype, device)
        bits = _bits(key._replace(block=frame, role=Role.SIGN), (n, units), device)
        if not pieces or len(pieces[-1][0][-1]) != stop - start:
            pieces.append(([], []))
        pieces[-1][0].append(q[start:stop])
        pieces[-1][1].append(bits)
    return Frames(
        tuple(torch.stack(rows) if len(rows) > 1 else rows[0][None] for rows, _ in pieces),
        tuple(torch.stack(signs) if len(signs) > 1 else signs[0][None] for _, signs in pieces),
        radii,
    )


def orthogonal(
    noise: Noise, key: Key, block: DirectionBlock, n: int, units: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draws ε [R, n, D] in frames of up to D mutually orthogonal rows, each row exactly N(0, I).

    ε_rn = χ_rn · (q_r ∘ signs_n): all examples share the frame q, each flips its coordinates by random signs of its own
    and scales each row by an independent χ_D radius. The last frame may have fewer than D rows.
    """
    return orthogonal_frames(key, block, n, units, dtype, device).eps()


_BITS = 52  # of a uniform: a float64 holds them exactly
_SOBOL_BITS = 30  # of a Sobol coordinate; the examples' shifts fill the remaining ones


def sobol(
    noise: Noise, key: Key, block: DirectionBlock, n: int, units: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draws ε [R, n, D] from a scrambled Sobol set of `block.total` points in D dimensions.

    A random linear matrix and a digital shift scramble the set once per example block, and each example adds a digital
    shift of its own. So every point of every example has exactly the law of the noise.

    Raises:
        ConfigError: the site has more units than a Sobol set has dimensions.
    """
    if units > qmc.Sobol.MAXDIM:
        raise ConfigError(f"estimator.sampler: 'sobol' reaches {qmc.Sobol.MAXDIM} units, a site has {units}; use 'iid'")
    wide = int.from_bytes(key._replace(block=0, role=Role.SCRAMBLE).digest(16), "little")
    rng = np.random.default_rng(wide)
    engine = qmc.Sobol(units, scramble=True, bits=_SOBOL_BITS, rng=rng)
    if block.start:
        engine.fast_forward(block.start)
    first, rest = (
        engine.random(1),
        engine.random(block.stop - block.start - 1),
    )  # drawing one point first avoids a warning
    grid = torch.from_numpy(np.concatenate([first, rest]) * 2.0**_SOBOL_BITS).to(device, torch.int64)
    grid <<= _BITS - _SOBOL_BITS
    stream = generator(key._replace(block=0, role=Role.SHIFT), device)
    shift = torch.empty(n, units, dtype=torch.int64, device=device).random_(0, 2**_BITS, generator=stream)
    u = ((grid[:, None, :] ^ shift).double() + 0.5) * 2.0**-_BITS
    return noise.quantile(u).to(dtype)


Sampler = Callable[[Noise, Key, DirectionBlock, int, int, torch.dtype, torch.device], Tensor]
SAMPLERS: dict[str, Sampler] = {"iid": iid, "orthogonal": orthogonal, "sobol": sobol}
