"""Redraws for a share of the examples: those with a large loss are drawn more often, and the estimate stays unbiased.

    ∂J/∂θ = E[ Σ_i (1_i / π_i) g_i ],   where example i is drawn with probability π_i given the shared pass

g_i is its estimate. Where an example is settled, its loss in the shared pass is near the smallest, and so is g_i.

Reference:
    Horvitz, Thompson, Journal of the American Statistical Association 1952; the systematic draw of Madow, Annals of
    Mathematical Statistics 1949, gives a fixed number of examples.

Shapes: n examples of a block, of which m are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glr_dist.checks import all_finite
from glr_dist.estimators.step import Step
from glr_dist.sites import Site, Tape
from glr_dist.streams import Role
from glr_dist.trees import Tree, taken

_UNIFORM = 0.3  # part of the probabilities that is the same for all examples; it bounds the weights by 1 / (0.3 share)
_MOST = 3.0  # times the mean: larger losses count as this, so that a few outliers do not take all the draws

Array = np.ndarray[Any, np.dtype[np.float64]]


def drawn_count(step: Step, site: Site, n: int) -> int:
    """Returns m, the number of examples of n that a site is redrawn for; all at a last site with a derivative."""
    if step.integrated(site) or step.differentiated(site):
        return n
    return max(1, math.ceil(step.options.share * n - 1e-9))


def drawn_share(step: Step, site: Site) -> float:
    """Returns the share of the examples of a whole block that a site is redrawn for."""
    return drawn_count(step, site, step.options.example_block) / step.options.example_block


def probabilities(losses: Array, number: int) -> Array:
    """Returns π [n], the probabilities of the examples to be drawn, which add up to `number`.

    Args:
        losses: losses of the shared pass [n].
        number: m.
    """
    above, n = losses - losses.min(), len(losses)
    above /= above.max() or 1.0  # the sum of the largest numbers would overflow
    above = np.minimum(above, _MOST / n * above.sum())
    total = above.sum()
    shares = (1 - _UNIFORM) * above / total + _UNIFORM / n if total > 0 else np.full(n, 1 / n)
    if shares.max() * number <= 1:
        return np.asarray(shares * number)
    certain = np.zeros(n, bool)
    while True:
        rest = shares[~certain].sum()
        found = np.where(certain, 1.0, shares * ((number - certain.sum()) / rest if rest > 0 else 0.0))
        if not (found[~certain] > 1).any():
            return found
        certain |= found > 1


def drawn_rows(chances: Array, number: int, u: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the examples that a systematic draw takes [m], in order: each with its probability, none twice.

    Args:
        chances: π [n], which add up to `number`.
        number: m.
        u: a random number, uniform in [0, 1).
    """
    ends = np.cumsum(chances)
    rows = np.searchsorted(ends, (np.arange(number) + u) * (ends[-1] / number), side="right")
    found: np.ndarray[Any, np.dtype[np.int64]] = np.minimum(rows, len(chances) - 1)
    return found


def drawn_part(step: Step, site: Site, shared_pass: int, example_block: int, tape: Tape) -> tuple[Step, Tape]:
    """Returns the step and the tape for the examples that a site is redrawn for, with their weights on the tape.

    All sites of a shared pass are redrawn for the same examples.

    Args:
        step: the step.
        site: the site.
        shared_pass, example_block: those of the tape.
        tape: the shared pass.
    """
    n = len(tape.losses)
    number = drawn_count(step, site, n)
    if number == n:
        return step, tape
    if tape.part is None:
        rows, weights = _draw(step, shared_pass, example_block, tape.losses, number)
        tape.part = _rows_of(tape, rows, weights)
    return replace(step, rows=tape.part.rows), tape.part


def _draw(step: Step, shared_pass: int, example_block: int, losses: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Returns the examples that are drawn, and their weights [m]: by the losses [n] and a keyed random number."""
    if not all_finite(losses):  # the estimate must not hide it
        return torch.arange(number, device=losses.device), losses.new_full((number,), torch.nan)
    chances = probabilities(losses.double().cpu().numpy(), number)
    u = step.key(shared_pass, 0, example_block)._replace(role=Role.EXAMPLES).uniform()
    rows = drawn_rows(chances, number, u)
    return torch.from_numpy(rows).to(losses.device), torch.from_numpy(1 / chances[rows]).to(losses)


class _Rows(dict[Any, Tree]):
    """Some examples of the values of a mapping; those of a value are copied when it is first needed."""

    def __init__(self, whole: Mapping[Any, Tree], rows: Tensor) -> None:
        super().__init__()
        self._whole, self._rows = whole, rows

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self._whole

    def __missing__(self, key: Any) -> Tree:
        self[key] = taken(self._whole[key], self._rows)
        return self[key]


def _rows_of(tape: Tape, rows: Tensor, weights: Tensor) -> Tape:
    """Returns a tape of some of its examples."""
    return Tape(
        logits=_Rows(tape.logits, rows),
        inputs=_Rows(tape.inputs, rows),
        starts=_Rows(tape.starts, rows),
        losses=tape.losses[rows],
        u=tape.u[rows] if len(tape.u) else tape.u,
        errors=tape.errors[rows] if len(tape.errors) else tape.errors,
        statistics=tape.statistics,
        noise=_Rows(tape.noise, rows),
        rows=rows,
        weights=weights,
    )


def spread(delta: Tensor, part: Tape, n: int) -> Tensor:
    """Returns δ of all n examples, which is 0 where an example was not drawn, from that of the drawn ones [m, *S]."""
    if part.rows is None:
        return delta
    return delta.new_zeros(n, *delta.shape[1:]).index_copy_(0, part.rows, delta)
