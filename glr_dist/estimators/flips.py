"""Flips: the derivative by the logits of piecewise constant units, one unit at a time, without redraws.

A unit that takes the level ℓ where t_ℓ < v ≤ t_{ℓ+1} (thresholds t_1 < … < t_m, density p of ε) has

    ∂J/∂z     = Σ_ℓ (p(u_ℓ) - p(u_{ℓ+1})) / σ · E[L_ℓ],   u_ℓ = (t_ℓ - z) / σ,  p(u_0) = p(u_{m+1}) = 0
    ∂J/∂log σ = Σ_ℓ (u_ℓ p(u_ℓ) - u_{ℓ+1} p(u_{ℓ+1})) · E[L_ℓ]

where L_ℓ is the loss with this unit at level ℓ, and all other noise as in the shared pass. The coefficients add up to
zero, so the loss of the shared pass is a baseline, and a unit needs one replay for each level that it does not have.

Shapes: n examples, D units, m thresholds, F = D·m flips; flip f is unit f // m at its (f % m)-th other level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from glr_dist.estimators.piecewise_constant import level_values, moment
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.estimators.unit_wise import Moves
from glr_dist.noise import Noise
from glr_dist.sites import Site
from glr_dist.streams import Key


@dataclass(frozen=True)
class Flips:
    """Moves each unit to each level that it does not have.

    Args:
        thresholds: t_1 … t_m of the units.
    """

    thresholds: tuple[float, ...]
    name: ClassVar[str] = "flips"
    replays: ClassVar[int] = 1

    def move_count(self, site: Site) -> int:
        return site.units * len(self.thresholds)

    def draw(
        self, noise: Noise, key: Key, block: DirectionBlock, n: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        return None

    def moves(
        self, noise: Noise, z: Tensor, v: Tensor, scale: Tensor, block: DirectionBlock, drawn: Tensor | None
    ) -> Moves:
        t = torch.cat([z.new_full((1,), threshold) for threshold in self.thresholds])
        ends = z.new_full((1,), torch.inf)
        edges, number = torch.cat([-ends, t, ends]), len(self.thresholds)
        units: slice | Tensor = slice(block.start, block.stop)
        other: Tensor | int = 0
        if number > 1:
            flip = torch.arange(block.start, block.stop, device=z.device)
            units, other = flip // number, (flip % number)[:, None]
        now = (v[:, units, None] > t).sum(2).T  # a value at a threshold has the level below it
        level = other + (other >= now)
        sigma = scale[units, None] if scale.dim() else scale
        centre = z[:, units].T
        below, above = ((edge - centre) / sigma for edge in (edges[level], edges[level + 1]))
        by_z = (noise.density(below) - noise.density(above)) / sigma
        by_scale = moment(noise, below) - moment(noise, above)
        return Moves(units, level_values(t)[level][:, None], by_z[:, None], by_scale[:, None])
