"""Piecewise constant units after a site: their thresholds and levels."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from glr_dist.errors import SiteError
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
            f"Sign or Staircase, and {what} follows; use 'copies' there, or 'auto'"
        )
    thresholds = tuple(float(t) for t in found)
    values = level_values(like.new_tensor(thresholds))
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
            "its thresholds for each unit alone; use 'copies' there, or 'auto'"
        )
    return thresholds


def level_values(t: Tensor) -> Tensor:
    """Returns a value of v inside each of the m + 1 levels [m + 1], by the thresholds [m]."""
    return torch.cat([t[:1] - 1, (t[1:] + t[:-1]) / 2, t[-1:] + 1])


def moment(noise: Noise, u: Tensor) -> Tensor:
    """Returns u p(u), which is 0 at ±∞."""
    return torch.where(u.isinf(), 0.0, u * noise.density(u))
