"""Probability that noisy scores choose a wrong class: the expectation of the 0-1 loss over the noise of the scores.

With independent ε_j of one law, density p and CDF F, and scores v_j = z_j + σ_j ε_j,

    P(argmax v ≠ y) = 1 - ∫ p(t) Π_{j≠y} F((z_y + σ_y t - z_j) / σ_j) dt

Shifting all nodes of a trapezoidal rule of step h by h u, with u uniform in [0, 1), makes it unbiased for any h, but
for the tails that are cut off. Estimates that are averaged anyway therefore need far fewer nodes.

Shapes: B examples, C classes, Q nodes of the quadrature.

Reference:
    Cranley, Patterson: Randomization of Number Theoretic Methods for Multiple Integration, SIAM J. Numer. Anal. 1976.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from glr_dist.errors import UserError

ERROR = 1e-5  # maximum error of the probability: it decides the number of nodes
SPREAD = 0.01  # maximum standard deviation of the probability by shifted nodes
_ELEMENTS = 2**18  # of one tensor of the quadrature: more nodes are added one group after another
_MOST = 2048  # nodes; more are needed only if the scales of the classes differ by two orders of magnitude
_TAIL = 1e-7  # probability that the nodes leave out at each end
_SHIFTED_TAIL = 5e-6  # the same of the shifted rule: a bias of at most ERROR


class Law(Protocol):
    """A noise law as the quadrature needs it: all methods are elementwise."""

    law: str
    kinked: bool  # the density has a kink at 0
    max_stable: bool  # z_j + ε_j is the largest with probability softmax(z)_j
    far: float  # distance in σ beyond which the higher of two scores counts as certain to stay higher; inf: none

    def quantile(self, u: Tensor) -> Tensor:
        """Returns the inverse CDF."""
        ...

    def cdf(self, eps: Tensor) -> Tensor:
        """Returns F(ε)."""
        ...

    def density(self, eps: Tensor) -> Tensor:
        """Returns p(ε)."""
        ...


class Misclassification:
    """P(argmax(z + σ ε) ≠ y), with an error of at most `ERROR`; differentiable in z and σ.

    Args:
        law: the law of ε.
    """

    def __init__(self, law: Law) -> None:
        self.law = law
        self._trapezoids: dict[tuple[int, float], tuple[np.ndarray, np.ndarray]] = {}
        self._counts: dict[tuple[int, float], int] = {}
        self._cells: dict[tuple[int, float], tuple[int, float, float]] = {}

    def __call__(self, z: Tensor, y: Tensor, scale: Tensor, u: Tensor | None = None) -> Tensor:
        """Returns the probabilities [B].

        Args:
            z: scores [B, C].
            y: class numbers [B].
            scale: σ, a scalar or [B, C].
            u: numbers in [0, 1) by which the nodes of each example are shifted, a third as many [B]. If they are
                uniform, the result has the probability as its mean and a standard deviation of at most `SPREAD`. Laws
                with a kink or a closed form ignore them.

        Raises:
            UserError: the quadrature would need too many nodes.
        """
        one = scale.dim() == 0
        if one and self.law.max_stable:
            return 1 - (z / scale).softmax(-1).gather(-1, y[:, None])[:, 0]
        z = z.T.contiguous()  # classes first: sums and products over them run along the examples
        own = torch.arange(len(z), device=z.device)[:, None] == y
        scale = scale if one else scale.T
        # F = 1 for the class itself; `scatter` refuses one that is out of range.
        ahead = ((_picked(z, own) - z) / scale).scatter(0, y[None], torch.inf)
        far = self.law.far
        if one and far < math.inf:  # there exp(-ε²/2) is subnormal, which takes a CPU 30 times as long
            ahead = torch.where(ahead > far, torch.inf, torch.where(ahead < -far, -torch.inf, ahead))
        ahead = ahead.clone(memory_format=torch.contiguous_format)  # compiled code computes it once, not for each node
        slope = None if one else _picked(scale.expand_as(z), own) / scale
        ratio = 1.0 if one else _rounded((scale.amax() / scale.amin()).item())
        if u is None or self.law.kinked:
            t, w = self._nodes(ahead.detach(), None if slope is None else slope.detach(), ratio)
        else:
            t, w = self._shifted(ahead, ratio, u)
        group = max(1, _ELEMENTS // z.numel())
        right = torch.zeros_like(z[0])
        for first in range(0, len(t), group):
            at, weights = t[first : first + group], w[first : first + group]
            at = at[:, None] if slope is None else at[:, None] * slope  # [Q, 1, 1 or B] or [Q, C, B]
            right = right + (weights * self.law.cdf(ahead + at).prod(1)).sum(0)
        return 1 - right

    def _nodes(self, ahead: Tensor, slope: Tensor | None, ratio: float) -> tuple[Tensor, Tensor]:
        """Returns nodes t and weights, [Q, 1] for all examples or [Q, B], for ∫ p(t) … dt."""
        key = len(ahead), ratio
        if self.law.kinked:
            if key not in self._counts:
                self._counts[key] = _count(self.law, *key)
            return _between_kinks(self.law, ahead, slope, self._counts[key])
        if key not in self._trapezoids:
            self._trapezoids[key] = _trapezoid(self.law, *key)
        # Rounded on the device, so that a graph for a GPU has no operator on the CPU.
        t, w = (torch.from_numpy(values).to(ahead.device).to(ahead)[:, None] for values in self._trapezoids[key])
        return t, w

    def _shifted(self, ahead: Tensor, ratio: float, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns nodes t and weights [Q, B], one at the place u of each of Q equal cells between the ends."""
        key = len(ahead), ratio
        if key not in self._cells:
            self._cells[key] = _cells(self.law, *key)
        count, low, step = self._cells[key]
        t = low + step * (torch.arange(count, dtype=ahead.dtype, device=ahead.device)[:, None] + u)
        return t, step * self.law.density(t)


def _picked(values: Tensor, own: Tensor) -> Tensor:
    """Returns the value [B] of each example's own class among values [C, B]; compiled, it is faster than `gather`."""
    return torch.where(own, values, 0.0).sum(0)


def _rounded(ratio: float) -> float:
    """Rounds a ratio of scales up to a power of √2, so that few rules are made."""
    return float(2 ** (np.ceil(2 * np.log2(ratio) - 1e-6) / 2))


# ---------------------------------------------------------------- nodes and weights


def _trapezoid(law: Law, classes: int, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes t [Q] and weights [Q] of the widest trapezoidal rule for ∫ p(t) … dt that is precise enough.

    The rule converges exponentially for a smooth integrand on the whole line; it needs fewer nodes than Gauss-Hermite.

    Reference:
        Trefethen, Weideman: The Exponentially Convergent Trapezoidal Rule, SIAM Review 2014.
    """
    low, high = _ends(law)
    ahead, slope = _hard_cases(classes, ratio)

    def rule(step: float) -> tuple[np.ndarray, np.ndarray]:
        t = step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)
        p: np.ndarray = law.density(torch.from_numpy(t)).numpy()
        return t, p / p.sum()

    def found(step: float) -> Tensor:
        t, w = map(torch.from_numpy, rule(step))
        return law.cdf(ahead[..., None] + slope[..., None] * t).prod(0) @ w

    step = 1.5
    while (found(step) - found(step / 2)).abs().max() > ERROR / 2:
        step *= 0.85
        if (high - low) / step > _MOST:
            raise UserError(_too_many(law, ratio))
    return rule(step)


def _between_kinks(law: Law, ahead: Tensor, slope: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Returns Gauss-Legendre nodes t and weights [Q, B] for ∫ p(t) … dt, `count` in each piece between two kinks.

    The kinks are those of p and of F((z_y + σ_y t - z_j) / σ_j), at ε = 0. The rule of a piece is one for t; that of
    the two ends, where all factors decay, is one for F(t).
    """
    nodes, weights = (torch.from_numpy(values).to(ahead)[:, None] for values in np.polynomial.legendre.leggauss(count))
    nodes, weights = (nodes + 1) / 2, weights / 2
    low, high = _ends(law)
    kinks = (-ahead if slope is None else -ahead / slope).clamp(low, high).where(ahead < torch.inf, 0.0)
    edges = torch.cat([torch.zeros_like(kinks[:1]), kinks]).sort(0).values
    width = (edges[1:] - edges[:-1])[:, None]
    t = edges[:-1, None] + width * nodes
    below, above = law.cdf(edges[:1]), 1 - law.cdf(edges[-1:])
    ends = torch.cat([below * nodes, 1 - above * nodes]).clamp(_TAIL, 1 - _TAIL)
    return (
        torch.cat([t.flatten(0, 1), law.quantile(ends)]),
        torch.cat([(width * weights * law.density(t)).flatten(0, 1), below * weights, above * weights]),
    )


def _ends(law: Law, tail: float = _TAIL) -> tuple[float, float]:
    """Returns the ends of the quadrature, beyond each of which the probability of the tail is left."""
    low, high = law.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _count(law: Law, classes: int, ratio: float) -> int:
    """Returns the smallest number of nodes in a piece that is precise enough."""
    ahead, slope = _hard_cases(min(classes, 17), ratio)  # with more classes the pieces are shorter

    def found(count: int) -> Tensor:
        t, w = _between_kinks(law, ahead, slope, count)
        return (w * law.cdf(ahead + slope * t[:, None]).prod(1)).sum(0)

    count = 2
    while (found(count) - found(2 * count)).abs().max() > ERROR / 2:
        count += 1
        if count * classes > _MOST:
            raise UserError(_too_many(law, ratio))
    return count


def _cells(law: Law, classes: int, ratio: float) -> tuple[int, float, float]:
    """Returns the smallest number of cells whose result, over all places of the nodes in them, spreads by `SPREAD`.

    Returns:
        (number, lower end of the first cell, width of a cell)
    """
    low, high = _ends(law, _SHIFTED_TAIL)
    ahead, slope = (each[..., None] for each in _hard_cases(classes, ratio))
    places = (torch.arange(8, dtype=torch.float64) + 0.5) / 8

    def found(count: int, place: Tensor) -> Tensor:
        step = (high - low) / count
        t = low + step * (torch.arange(count, dtype=torch.float64) + place)
        return law.cdf(ahead + slope * t).prod(0) @ (step * law.density(t))

    count = 2
    while torch.stack([found(count, place) for place in places]).std(0, correction=0).max() > SPREAD:
        count += 1
        if count > _MOST:
            raise UserError(_too_many(law, ratio))
    return count, low, (high - low) / count


def _hard_cases(classes: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Returns (z_y - z_j) / σ_j and σ_y / σ_j of hard integrands, each [C - 1, H] in float64.

    The steps of the F are as narrow or as wide as the ratio allows, or half of them are narrow; they are at one place,
    spread, or all but one far away; in each case at 25 places.
    """
    rivals = max(classes - 1, 1)
    places = np.linspace(-6, 5.9, 25)
    spread = np.linspace(-2, 2, rivals) if rivals > 1 else np.zeros(1)
    one = np.where(np.arange(rivals) == 0, 0.0, 50.0)
    slopes = (np.full(rivals, ratio), np.full(rivals, 1 / ratio), np.where(np.arange(rivals) % 2 == 0, ratio, 1.0))
    ahead = [slope * (places[:, None] + shape) for slope in slopes for shape in (0.0, spread, one)]
    all_slopes = [np.broadcast_to(slope, (len(places), rivals)) for slope in slopes for _ in range(3)]
    return torch.from_numpy(np.concatenate(ahead).T.copy()), torch.from_numpy(np.concatenate(all_slopes).T.copy())


def _too_many(law: Law, ratio: float) -> str:
    return (
        f"estimator.head: the expectation of the 0-1 loss needs more than {_MOST} nodes under {law.law} noise, whose "
        f"scales differ by a factor of up to {ratio:.3g} between the classes; use 'sampled', or one scale per site"
    )
