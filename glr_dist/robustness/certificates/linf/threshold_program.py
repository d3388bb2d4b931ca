"""A mixed-integer program that decides whether a network of one threshold layer changes its prediction in a box.

Shapes: x [I] the input, z = A x + a [D] the hidden logits, h = 1[z > 0] [D], class scores C h + c [classes].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

Vector = NDArray[np.float64]
Array = NDArray[np.float64]

_SLACK = 1e-5  # of the solver's tolerances (1e-6), added to each logit and to each margin


@dataclass(frozen=True)
class ThresholdNetwork:
    """The weights of a network of one threshold layer.

    Attributes:
        inner, inner_bias: A [D, I] and a [D].
        outer, outer_bias: C [classes, D] and c [classes].
    """

    inner: Array
    inner_bias: Vector
    outer: Array
    outer_bias: Vector


def least_margin(
    network: ThresholdNetwork,
    low: Vector,
    high: Vector,
    label: int,
    other: int,
    *,
    hidden_rounding: Vector,
    margin_rounding: float,
    nodes: int,
    strict: bool = False,
) -> tuple[float, Vector | None]:
    """Bounds the margin of a class over another one from below, over all inputs between two bounds.

    Minimises (C_y - C_k) h subject to z_j >= -t where h_j = 1 and z_j <= t where h_j = 0. The slack t allows for the
    errors of floating point and for the solver's tolerances, so the bound holds for the network as it computes.

    Args:
        network: the weights.
        low, high: bounds of the input [I].
        label, other: the classes y and k.
        hidden_rounding: bounds of the errors of the hidden logits [D].
        margin_rounding: bound of the error of the margin.
        nodes: maximum number of nodes of the search.
        strict: keep each z_j away from 0, z_j >= t or z_j <= -t: the input is then a real counterexample if its margin
            is negative, but the bound is not a proof.

    Returns:
        (lower bound of the margin, an input at which the margin is least or None). A positive bound is a proof.

    Reference:
        Tjeng, Xiao, Tedrake: Evaluating Robustness of Neural Networks with Mixed Integer Programming, ICLR 2019.
    """
    positive, negative = np.maximum(network.inner, 0), np.minimum(network.inner, 0)
    slack = hidden_rounding + _SLACK
    below = positive @ low + negative @ high + network.inner_bias - slack
    above = positive @ high + negative @ low + network.inner_bias + slack
    gains = network.outer[label] - network.outer[other]
    constant = float(network.outer_bias[label] - network.outer_bias[other] + gains[below > 0].sum()) - margin_rounding
    open_units = np.flatnonzero((below <= 0) & (above > 0))
    gains = gains[open_units]
    bound = constant + float(np.minimum(gains, 0).sum())
    if bound > _SLACK or not len(open_units):
        return bound - _SLACK, (low + high) / 2
    rows, offset = network.inner[open_units], network.inner_bias[open_units]
    least, most, slack = below[open_units], above[open_units], (-1 if strict else 1) * slack[open_units]
    count, size = len(open_units), len(low)
    on = LinearConstraint(np.hstack([rows, np.diag(least)]), least - offset - slack, np.inf)
    off = LinearConstraint(np.hstack([rows, -np.diag(most)]), -np.inf, slack - offset)
    solved = milp(
        np.concatenate([np.zeros(size), gains]),
        integrality=np.concatenate([np.zeros(size), np.ones(count)]),
        bounds=Bounds(np.concatenate([low, np.zeros(count)]), np.concatenate([high, np.ones(count)])),
        constraints=[on, off],
        options={"node_limit": nodes},
    )
    dual = solved.mip_dual_bound
    if dual is not None and np.isfinite(dual):
        bound = max(bound, constant + float(dual))
    return bound - _SLACK, None if solved.x is None else solved.x[:size]
