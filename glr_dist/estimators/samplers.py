"""Samplers: the noise ε of a block of directions at one site.

Shapes: R directions of a block, n examples of an example block, D units of a site (its logits, flattened).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from glr_dist.errors import ConfigError
from glr_dist.noise import Noise
from glr_dist.streams import Key, Role, generator


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


@lru_cache(maxsize=8)  # blocks of directions and of examples share a frame
def _frame(key: Key, rows: int, units: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draws `rows` orthonormal rows [rows, D], uniform (Haar) on the Stiefel manifold."""
    normals = torch.randn(units, rows, generator=generator(key), dtype=torch.float64)
    q, r = torch.linalg.qr(normals)
    q = q * r.diagonal().sign()  # the signs make Q Haar
    frame: Tensor = q.T.contiguous().to(device, dtype)
    return frame


def orthogonal(
    noise: Noise, key: Key, block: DirectionBlock, n: int, units: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draws ε [R, n, D] in frames of up to D mutually orthogonal rows, each row exactly N(0, I).

    ε_rn = χ_rn · (q_r ∘ signs_n): all examples share the frame q, each flips its coordinates by random signs of its own
    and scales each row by an independent χ_D radius. The last frame may have fewer than D rows.
    """
    stream = generator(key._replace(block=block.number, role=Role.RADIUS), device)
    shapes = torch.full((block.stop - block.start, n), units / 2, dtype=torch.float64, device=device)
    radii = (2 * torch._standard_gamma(shapes, generator=stream)).sqrt().to(dtype)  # χ² is a gamma variable
    pieces = []
    for frame in range(block.start // units, (block.stop - 1) // units + 1):
        first = frame * units
        frame_key = key._replace(block=frame, example_block=0, role=Role.FRAME)
        q = _frame(frame_key, min(units, block.total - first), units, dtype, device)
        q = q[max(block.start - first, 0) : block.stop - first]
        bits = torch.empty(n, units, dtype=dtype, device=device)
        signs = bits.random_(0, 2, generator=generator(key._replace(block=frame, role=Role.SIGN), device))
        pieces.append(q[:, None, :] * (2 * signs - 1))
    eps = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return eps.mul_(radii[..., None])


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
