"""Flips: the derivative by the logits of piecewise constant units, one unit at a time, without redraws.

A unit that takes the level ℓ where t_ℓ < v ≤ t_{ℓ+1} (thresholds t_1 < … < t_m, density p of ε) has

    ∂J/∂z     = Σ_ℓ (p(u_ℓ) - p(u_{ℓ+1})) / σ · E[L_ℓ],   u_ℓ = (t_ℓ - z) / σ,  p(u_0) = p(u_{m+1}) = 0
    ∂J/∂log σ = Σ_ℓ (u_ℓ p(u_ℓ) - u_{ℓ+1} p(u_{ℓ+1})) · E[L_ℓ]

where L_ℓ is the loss with this unit at level ℓ, and all other noise as in the shared pass. The coefficients add up to
zero, so the loss of the shared pass is a baseline, and a unit needs one replay for each level that it does not have.

Where σ is small beside the logits, most coefficients are near zero. A share of the flips can be drawn then, flip f
π_f times on average (a systematic draw, by the size of its coefficient), and weighted by 1 / π_f: without bias.

Shapes: n examples, D units, m thresholds, F = D·m flips; flip f is unit f // m at its (f % m)-th other level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from glr_dist.estimators.piecewise_constant import level_values, moment
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.estimators.unit_wise import Moves
from glr_dist.noise import Noise
from glr_dist.sites import Site
from glr_dist.streams import Key, Role, generator

_UNIFORM = 0.1  # part of the probabilities that is the same for all flips; it bounds the weights by 1 / (0.1 share)


@dataclass(frozen=True)
class Flips:
    """Moves each unit to each level that it does not have, or draws some of these flips for each example.

    Args:
        thresholds: t_1 … t_m of the units.
        share: share of the flips of an example that are replayed.
    """

    thresholds: tuple[float, ...]
    share: float = 1.0
    name: ClassVar[str] = "flips"
    replays: ClassVar[int] = 1

    def move_count(self, site: Site) -> int:
        return math.ceil(self.share * site.units * len(self.thresholds) - 1e-9)

    def draw(
        self, noise: Noise, key: Key, block: DirectionBlock, n: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        if self.share == 1:
            return None
        stream = generator(key._replace(role=Role.REDRAW), device)  # one for all blocks
        return torch.rand(n, generator=stream, dtype=torch.float64, device=device)

    def moves(
        self, noise: Noise, z: Tensor, v: Tensor, scale: Tensor, block: DirectionBlock, drawn: Tensor | None
    ) -> Moves:
        if drawn is None:
            return self._flips(noise, z, v, scale, block.start, block.stop)
        found = self._flips(noise, z, v, scale, 0, z.shape[1] * len(self.thresholds))
        assert found.by_scale is not None
        which, weights = drawn_flips(found.by_z[:, 0], drawn, block)
        values, by_z, by_scale = (
            each[:, 0].gather(0, which)[:, None] for each in (found.values, found.by_z, found.by_scale)
        )
        return Moves(which // len(self.thresholds), values, by_z * weights[:, None], by_scale * weights[:, None])

    def _flips(self, noise: Noise, z: Tensor, v: Tensor, scale: Tensor, start: int, stop: int) -> Moves:
        """Returns the flips start … stop - 1; takes the other arguments of `moves`."""
        t = torch.cat([z.new_full((1,), threshold) for threshold in self.thresholds])
        ends = z.new_full((1,), torch.inf)
        edges, number = torch.cat([-ends, t, ends]), len(self.thresholds)
        units: slice | Tensor = slice(start, stop)
        other: Tensor | int = 0
        if number > 1:
            flip = torch.arange(start, stop, device=z.device)
            units, other = flip // number, (flip % number)[:, None]
        now = (v[:, units, None] > t).sum(2).T  # a value at a threshold has the level below it
        level = other + (other >= now)
        sigma = scale[units, None] if scale.dim() else scale
        centre = z[:, units].T
        below, above = ((edge - centre) / sigma for edge in (edges[level], edges[level + 1]))
        by_z = (noise.density(below) - noise.density(above)) / sigma
        by_scale = moment(noise, below) - moment(noise, above)
        return Moves(units, level_values(t)[level][:, None], by_z[:, None], by_scale[:, None])


def drawn_flips(coefficients: Tensor, u: Tensor, block: DirectionBlock) -> tuple[Tensor, Tensor]:
    """Draws flips of each example: those with large coefficients more often, and some of these several times.

    Args:
        coefficients: of the losses after all flips in ∂J/∂z of their units [F, n].
        u: a random number of each example, uniform in [0, 1) [n].
        block: those of the `total` draws that are returned.

    Returns:
        The flips that are drawn, and their weights, one over the expected number of times that each is drawn
        [stop - start, n].
    """
    size = coefficients.double().abs()
    chances = (1 - _UNIFORM) * size / size.sum(0).clamp_min(1e-300) + _UNIFORM / len(size)
    ends = chances.cumsum(0)
    draws = torch.arange(block.start, block.stop, dtype=torch.float64, device=u.device)
    points = (draws[:, None] + u) * (ends[-1] / block.total)
    which = torch.searchsorted(ends.T.contiguous(), points.T.contiguous(), right=True).T.clamp(max=len(size) - 1)
    weights = ends[-1] / (block.total * chances.gather(0, which))
    return which, weights.to(coefficients.dtype)
