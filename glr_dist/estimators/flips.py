"""Flips: the derivative by the logits of piecewise constant units, one unit at a time, without redraws.

A unit that takes the level ℓ where t_ℓ < v ≤ t_{ℓ+1} (thresholds t_1 < … < t_m, density p of ε) has

    ∂J/∂z     = Σ_ℓ (p(u_ℓ) - p(u_{ℓ+1})) / σ · E[L_ℓ],   u_ℓ = (t_ℓ - z) / σ,  p(u_0) = p(u_{m+1}) = 0
    ∂J/∂log σ = Σ_ℓ (u_ℓ p(u_ℓ) - u_{ℓ+1} p(u_{ℓ+1})) · E[L_ℓ]

where L_ℓ is the loss with this unit at level ℓ, and all other noise as in the shared pass. The coefficients add up to
zero, so the loss of the shared pass is a baseline, and a unit needs one replay for each level that it does not have.

Shapes: n examples, D units, m thresholds, F = D·m flips; flip f is unit f // m at its (f % m)-th other level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glr_dist.estimators.piecewise_constant import level_values, moment
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.noise import Noise


def flipped(v: Tensor, thresholds: Sequence[float], block: DirectionBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Flips units of noisy logits.

    Args:
        v: noisy logits of the shared pass [n, D].
        thresholds: t_1 … t_m.
        block: numbers of the flips.

    Returns:
        The noisy logits with one unit at another level each [R, n, D], the unit of each flip [R], and its level there
        [R, n].
    """
    t = v.new_tensor(thresholds)
    flip = torch.arange(block.start, block.stop, device=v.device)
    unit, other = flip // len(t), flip % len(t)
    now = torch.bucketize(v, t)[:, unit].T
    level = other[:, None] + (other[:, None] >= now)
    copies = v.expand(len(flip), *v.shape).clone()
    copies.scatter_(2, unit[:, None, None].expand(-1, len(v), 1), level_values(t)[level][..., None])
    return copies, unit, level


def coefficients(
    noise: Noise, z: Tensor, scale: Tensor, thresholds: Sequence[float], unit: Tensor, level: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the coefficients [R, n] of the losses in ∂J/∂z of the units, and in ∂J/∂log σ.

    Args:
        noise: the law.
        z: logits [n, D].
        scale: σ, a scalar or [D].
        thresholds: t_1 … t_m.
        unit, level: of each flip, as `flipped` returns them.
    """
    t = z.new_tensor([-torch.inf, *thresholds, torch.inf])
    sigma = (scale.expand(z.shape[1]) if scale.dim() == 0 else scale)[unit, None]
    below, above = ((edge - z[:, unit].T) / sigma for edge in (t[level], t[level + 1]))
    by_z = (noise.density(below) - noise.density(above)) / sigma
    return by_z, moment(noise, below) - moment(noise, above)
