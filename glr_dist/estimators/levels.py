"""Levels: the score of a redraw, averaged over all noise that puts a piecewise constant unit at the same level.

The loss depends on the noise only through the levels of the units, so its mean given them may take the place of the
score (Rao-Blackwell). A unit takes the level ℓ where t_ℓ < z + σ ε ≤ t_{ℓ+1} (thresholds t_1 < … < t_m), and

    E[s(ε) | ℓ]         = (p(u_ℓ) - p(u_{ℓ+1})) / P_ℓ,   u_ℓ = (t_ℓ - z) / σ,   P_ℓ = F(u_{ℓ+1}) - F(u_ℓ)
    E[ε s(ε) - 1 | ℓ]   = (u_ℓ p(u_ℓ) - u_{ℓ+1} p(u_{ℓ+1})) / P_ℓ

with the density p, CDF F and score s of ε. An antithetic pair has two levels, those of ε and of -ε. Their noise is an
interval, too: where the pair leaves a threshold unit at one level, it says nothing about this unit, and its score is 0.

Shapes: S signs, R directions, n examples, *S the shape of the site's logits, m thresholds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from glr_dist.estimators.piecewise_constant import moment
from glr_dist.estimators.step import Scores, Step
from glr_dist.noise import Noise
from glr_dist.sites import Site

_RARE = 1e-12  # probability up to which double precision does not give the mean; such noise is never seen


def scores_of(step: Step, site: Site, z: Tensor, eps: Tensor, v: Tensor) -> Scores:
    """Returns the scores of a site's draws, averaged given the levels of the units behind it where the step says so.

    Args:
        step: the step.
        site: the site.
        z: its logits [n, *S].
        eps: ε [R, n, *S], or coefficients of its column space.
        v: noisy logits z + σ ε and, of pairs, z - σ ε [S, R, n, *S].
    """
    noise, learned = step.noise_at(site), site.name in step.log_scales
    if site.name not in step.levels:
        return Scores.of(noise, eps, learned=learned)
    return level_scores(noise, z, step.scales[site.name], v, step.levels[site.name], learned=learned)


def level_scores(
    noise: Noise, z: Tensor, scale: Tensor, v: Tensor, thresholds: Sequence[float], *, learned: bool
) -> Scores:
    """Returns the scores of ε, averaged given the levels of each unit [R, n, *S].

    Those of pairs at threshold units have a common factor.

    Args:
        noise: the law; symmetric if the directions are pairs.
        z: logits [n, *S].
        scale: σ, a scalar or [*S].
        v: noisy logits z + σ ε and, of pairs, z - σ ε [S, R, n, *S].
        thresholds: t_1 … t_m.
        learned: σ is learned.

    Reference:
        Casella, Robert: Rao-Blackwellisation of sampling schemes, Biometrika 1996.
    """
    if len(thresholds) == 1 and len(v) == 2:
        return _of_threshold_pairs(noise, (z - thresholds[0]).abs() / scale, (v > thresholds[0]).to(v), learned)
    edges = torch.stack([(end - z.double()) / scale for end in (-torch.inf, *thresholds, torch.inf)])
    levels = torch.bucketize(v, v.new_tensor(thresholds))
    count = len(edges) - 1
    if count ** len(v) > v.shape[1]:  # more combinations of levels than directions
        means = _means(noise, [(edges.gather(0, each), edges.gather(0, each + 1)) for each in levels], learned)
    else:
        number = levels[0] if len(v) == 1 else levels[0] * count + levels[1]
        each_sign = zip(*itertools.product(range(count), repeat=len(v)), strict=True)
        ends = [(edges[list(level)], edges[[one + 1 for one in level]]) for level in each_sign]
        means = [table.gather(0, number) for table in _means(noise, ends, learned)]
    by_z, *by_scale = (mean.to(v) for mean in means)
    return Scores(by_z, by_scale[0] if learned else None)


def _of_threshold_pairs(noise: Noise, distance: Tensor, above: Tensor, learned: bool) -> Scores:
    """Returns the scores of pairs at units with one threshold.

    Args:
        noise: the law, symmetric.
        distance: |t - z| / σ = u [n, *S]; the pair is on both sides of the threshold where |ε| > u.
        above: 1 where the noisy logits of ε and of -ε are above the threshold, else 0 [2, R, n, *S].
        learned: σ is learned.
    """
    density, beyond = noise.density(distance), noise.cdf(-distance)
    apart = _ratio(density, beyond)
    by_z = above[0] - above[1]
    if not learned:
        return Scores(by_z, None, apart)
    same = _ratio(-2 * distance * density, 1 - 2 * beyond)
    return Scores(by_z, torch.where(by_z == 0, same, distance * apart), apart)


def _means(noise: Noise, levels: Sequence[tuple[Tensor, Tensor]], learned: bool) -> list[Tensor]:
    """Returns the mean of s(ε) and, if σ is learned, that of ε s(ε) - 1.

    Args:
        noise: the law.
        levels: the interval of ε at a level; of a pair also that of -ε.
        learned: σ is learned.
    """
    below, above = levels[0]
    for other_below, other_above in levels[1:]:
        below, above = torch.maximum(below, -other_above), torch.minimum(above, -other_below)
    probability = noise.cdf(above) - noise.cdf(below)
    totals = [noise.density(below) - noise.density(above)]
    if learned:
        totals.append(moment(noise, below) - moment(noise, above))
    return [_ratio(total, probability) for total in totals]


def _ratio(total: Tensor, probability: Tensor) -> Tensor:
    """Returns the mean over noise of a probability; 0 where that is so small that the noise never falls there."""
    return torch.where(probability > _RARE, total / probability, 0.0)
