"""Which way of redrawing each site takes, and what it needs for that: thresholds of the units behind it, or a space."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from glr_dist.config import Estimator as Options
from glr_dist.errors import ConfigError, SiteError
from glr_dist.estimators.column_space import ColumnSpace, narrow_space, worthwhile_space
from glr_dist.estimators.differences import Differences
from glr_dist.estimators.flips import Flips
from glr_dist.estimators.piecewise_constant import thresholds_of
from glr_dist.estimators.unit_wise import UnitWise
from glr_dist.network import Network
from glr_dist.noise import Gaussian, Noise
from glr_dist.rules import direct_parameters

Thresholds = Mapping[str, tuple[float, ...]]  # of the units behind each site whose units are piecewise constant


def known_thresholds(network: Network, noise: Noise | None, ways: Mapping[str, str], like: Tensor) -> Thresholds:
    """Returns the thresholds of the units behind each site that needs them, or may use them, by the site's name.

    Args:
        network: the prepared network.
        noise: its law.
        ways: site -> the way of redrawing that the options say.
        like: a tensor on the device of the logits.

    Raises:
        ConfigError: a site's way needs a density, which the law does not have.
        SiteError: no piecewise constant units follow such a site.
    """
    known: dict[str, tuple[float, ...]] = {}
    like = torch.empty(0, dtype=network.dtype, device=like.device)
    density = noise is None or noise.has_cdf
    for name, way in ways.items():
        if way in ("flips", "levels"):
            if not density:
                law = noise.law if noise else "none"
                raise ConfigError(f"estimator.redraw: {way!r} needs a law with density(eps), {law} has none")
            known[name] = thresholds_of(network, network.by_name[name], way, like)
        elif way == "auto" and density:
            with suppress(SiteError):  # these units are not piecewise constant
                known[name] = thresholds_of(network, network.by_name[name], way, like)
    return known


def unit_wise_of(
    network: Network, noise: Noise | None, options: Options, ways: Mapping[str, str], thresholds: Thresholds
) -> dict[str, UnitWise]:
    """Returns the unit-wise redraw of each site that requires or allows one, by the site's name.

    Raises:
        ConfigError: the way of a site is `differences`, and the law has no half-widths, or σ is learned.
    """
    found: dict[str, UnitWise] = {}
    learned = noise is not None and noise.learn != "none"
    for site in network.sites:
        way = ways[site.name]
        if way == "flips" or (way == "auto" and site.name in thresholds):
            found[site.name] = Flips(thresholds[site.name])
        elif way == "differences" and learned:
            raise ConfigError(
                "estimator.redraw: 'differences' does not estimate the gradient of σ, which noise.learn needs"
            )
        elif way == "differences" and (noise is None or not noise.has_half_width):
            law = noise.law if noise else "none"
            raise ConfigError(
                f"estimator.redraw: 'differences' needs a law with half_width(shape, stream, dtype), {law} has none; "
                "use gaussian or laplace"
            )
        elif way == "differences" or (way == "auto" and noise is not None and noise.has_half_width and not learned):
            found[site.name] = Differences()
    return found if options.name == "conditional" else {}


def levels_of(options: Options, ways: Mapping[str, str], thresholds: Thresholds) -> Thresholds:
    """Returns the thresholds of the units given whose levels the scores are averaged, by the site's name."""
    correlated = options.baseline == "leave_one_out" and options.sampler == "orthogonal"
    allowed = options.name in ("conditional", "layerwise") and not correlated
    return {name: t for name, t in thresholds.items() if allowed and ways[name] in ("levels", "auto")}


def spaces_of(
    network: Network, noise: Noise | None, options: Options, ways: Mapping[str, str], levels: Thresholds
) -> dict[str, ColumnSpace]:
    """Returns the column spaces of each site that redraws only the noise inside them, by the site's name.

    Raises:
        ConfigError: a site's way is `column_space`, and the noise is not Gaussian.
        SiteError: the segment of such a site has no narrow column space.
    """
    allowed = type(noise) is Gaussian and noise.learn == "none" and options.name in ("conditional", "layerwise")
    spaces = {}
    for site in network.sites:
        way = ways[site.name]
        if way == "column_space" and type(noise) is not Gaussian:
            raise ConfigError("estimator.redraw: 'column_space' needs glr_dist.Gaussian; use 'copies' there")
        if not site.owned or not allowed:
            continue
        trained = direct_parameters(network, site)
        if way == "column_space":
            spaces[site.name] = narrow_space(site, trained)
        elif way == "auto" and site.name not in levels and (space := worthwhile_space(site, trained)):
            spaces[site.name] = space
    return spaces
