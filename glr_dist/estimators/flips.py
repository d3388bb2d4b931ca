"""Flips: the derivative by the logits of piecewise constant units, one unit at a time, without redraws.

A unit that takes the level ℓ where t_ℓ < v ≤ t_{ℓ+1} (thresholds t_1 < … < t_m, density p of ε) has

    ∂J/∂z     = Σ_ℓ (p(u_ℓ) - p(u_{ℓ+1})) / σ · E[L_ℓ],   u_ℓ = (t_ℓ - z) / σ,  p(u_0) = p(u_{m+1}) = 0
    ∂J/∂log σ = Σ_ℓ (u_ℓ p(u_ℓ) - u_{ℓ+1} p(u_{ℓ+1})) · E[L_ℓ]

where L_ℓ is the loss with this unit at level ℓ, and all other noise as in the shared pass. The coefficients add up to
zero, so the loss of the shared pass is a baseline, and a unit needs one replay for each level that it does not have.

Shapes: n examples, D units, m thresholds, F = D·m flips; flip f is unit f // m at its (f % m)-th other level.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from glr_dist.errors import SiteError
from glr_dist.estimators.levels import moment
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.network import Network
from glr_dist.noise import Noise
from glr_dist.sites import Site
from glr_dist.streams import Key, Role, generator

_CHECKED = 64  # values of a unit that `thresholds_of` tries


def thresholds_of(network: Network, site: Site, way: str, like: Tensor) -> tuple[float, ...]:
    """Returns the thresholds t_1 < … < t_m of the piecewise constant units that follow a site.

    The units are the next block of the chain, a module with an attribute `thresholds`. Its outputs are compared with
    its levels, at random values.

    Args:
        network: the prepared network.
        site: the site.
        way: the way of redrawing that needs them, for the error.
        like: a tensor of the type and device of the logits.

    Raises:
        SiteError: no such module follows the site, or its outputs are others than its thresholds say.
    """
    following = network.blocks[site.block + 1].module if site.block + 1 < len(network.blocks) else None
    found = getattr(following, "thresholds", None)
    if not site.top or following is None or found is None:
        what = f"a {type(following).__name__}" if site.top and following is not None else "no block of the chain"
        raise SiteError(
            f"estimator.redraw: {way!r} at '{site.name}' needs a module with thresholds after it, such as Heaviside, "
            f"Sign or Staircase, and {what} follows; use 'copies' there"
        )
    thresholds = tuple(float(t) for t in found)
    values = _values(like.new_tensor(thresholds))
    stream = generator(Key(0, site=site.index, role=Role.VERIFICATION))
    shape = (_CHECKED, *site.shape)
    level = torch.randint(0, len(values), shape, generator=stream).to(like.device)
    apart = min([1.0, *(b - a for a, b in itertools.pairwise(thresholds))])
    moved = 0.4 * apart * (2 * torch.rand(shape, generator=stream) - 1).to(like)  # within the level
    with torch.no_grad():
        constant = following(values.view(-1, *[1] * len(site.shape)).expand(len(values), *site.shape).contiguous())
        outputs = following(values[level] + moved)
        levels = (
            constant.gather(0, level.flatten(1)[:, None].view(level.shape)) if outputs.shape == level.shape else None
        )
    if levels is None or not torch.equal(outputs, levels):
        raise SiteError(
            f"estimator.redraw: the outputs of {type(following).__name__} after '{site.name}' are not constant between "
            "its thresholds for each unit alone; use 'copies' there"
        )
    return thresholds


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
    copies.scatter_(2, unit[:, None, None].expand(-1, len(v), 1), _values(t)[level][..., None])
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


def _values(t: Tensor) -> Tensor:
    """Returns a value of v inside each level [m + 1]."""
    return torch.cat([t[:1] - 1, (t[1:] + t[:-1]) / 2, t[-1:] + 1])
