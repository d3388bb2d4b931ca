"""Differences: the derivative by one logit at a time, from the losses at the two ends of a random interval.

Noise with a symmetric, unimodal density p is uniform on an interval of random half-width R (Khinchine): ε = R U, U
uniform on [-1, 1], R with the density -2 r p'(r). The mean of a derivative over an interval is the difference of the
values at its ends, divided by its length: a central difference with a random step. For unit j

    ∂J/∂z_j = E[ (L(z_j + σ R) - L(z_j - σ R)) / (2 σ R) ]

where only unit j moves, and all other noise is as in the shared pass. The loss may jump: it is averaged over ε_j. No
score multiplies it, so that for a smooth loss the variance stays bounded as σ falls.

Shapes: n examples, U units of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.estimators.unit_wise import Moves
from glr_dist.noise import Noise
from glr_dist.sites import Site
from glr_dist.streams import Key, Role, generator


@dataclass(frozen=True)
class Differences:
    """Moves each unit to both ends of an interval."""

    name: ClassVar[str] = "differences"
    replays: ClassVar[int] = 2

    def move_count(self, site: Site) -> int:
        return site.units

    def draw(
        self, noise: Noise, key: Key, block: DirectionBlock, n: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        stream = generator(key._replace(block=block.number, role=Role.REDRAW), device)
        return noise.half_width((block.stop - block.start, n), stream, dtype)

    def moves(
        self, noise: Noise, z: Tensor, v: Tensor, scale: Tensor, block: DirectionBlock, drawn: Tensor | None
    ) -> Moves:
        assert drawn is not None
        units = slice(block.start, block.stop)
        half = (scale[units, None] if scale.dim() else scale) * drawn
        centre = z[:, units].T
        weight = 1 / (2 * half)
        return Moves(units, torch.stack([centre + half, centre - half], 1), torch.stack([weight, -weight], 1))
