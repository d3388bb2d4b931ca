"""Objectives J of small two-layer networks, exact or by quadrature, as differentiable float64 torch expressions.

The networks are Linear → activation → Linear (sites "0" and "2") with noise at both sites or at one. A threshold unit
is on with probability 1 - F(-z/σ), F the law's CDF; smooth units and the output are integrated over their noise.

Shapes: N examples, H hidden states (patterns of thresholds, or quadrature nodes), C classes, Q nodes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from glr_dist import GLR, Gaussian, losses

EDGES = (0.0, 1.5, 4.0, 9.0, 20.0)  # beyond: 4e-9 of the laws with exponential tails


def density(law: str, e: Tensor) -> Tensor:
    """p(ε) of the unit law."""
    if law == "gaussian":
        return torch.exp(-e.square() / 2) / math.sqrt(2 * math.pi)
    if law == "laplace":
        return torch.exp(-e.abs()) / 2
    if law == "gumbel":
        return torch.exp(-e - torch.exp(-e))
    assert law == "logistic", f"write down the density and the CDF of {law} here"
    return torch.sigmoid(e) * torch.sigmoid(-e)


def cdf(law: str, e: Tensor) -> Tensor:
    """F(ε) of the unit law."""
    if law == "gaussian":
        return torch.special.ndtr(e)
    if law == "laplace":
        tail = torch.exp(-e.abs()) / 2
        return torch.where(e < 0, tail, 1 - tail)
    if law == "gumbel":
        return torch.exp(-torch.exp(-e))
    assert law == "logistic", f"write down the density and the CDF of {law} here"
    return torch.sigmoid(e)


def legendre(edges: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights [..., Q] of the pieces between sorted edges [..., E]."""
    t, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
    half = (edges[..., 1:] - edges[..., :-1])[..., None] / 2
    places = edges[..., :-1, None] + half * (t + 1)
    return places.flatten(-2), (half * w).flatten(-2)


def edges_of(law: str) -> Tensor:
    """The edges of the pieces of a quadrature over ε [E]; one is 0, where the density may have a kink."""
    half = torch.tensor(EDGES, dtype=torch.float64) * (0.4 if law == "gaussian" else 1.0)
    below = 0.2 * half if law == "gumbel" else half  # p(-4) = 4e-23
    return torch.cat([-below[1:].flip(0), half])


def expectation(law: str, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes ε [Q] and weights [Q] of E[f(ε)] for a smooth f."""
    e, w = legendre(edges_of(law), nodes)
    w = w * density(law, e)
    kept = w > 1e-11
    return e[kept], w[kept]


def expectation_of_two(law: str, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes (ε, ε') [Q, 2] and weights [Q] of E[f(ε, ε')] for a smooth f and independent ε, ε'."""
    e, w = expectation(law, nodes)
    pairs, weights = torch.cartesian_prod(e, e), torch.cartesian_prod(w, w).prod(-1)
    kept = weights > 1e-11
    return pairs[kept], weights[kept]


class Problem(NamedTuple):
    """A network, its data and its scales: parameter or `scale SITE` -> its value.

    `smooth` says whether the hidden units are sigmoids (else thresholds).
    """

    values: dict[str, Tensor]
    x: Tensor
    y: Tensor
    loss: str
    smooth: bool


def hidden(problem: Problem, values: dict[str, Tensor], law: str, noisy: bool, nodes: int) -> tuple[Tensor, Tensor]:
    """The states of the two hidden units [N, H, 2] and their probabilities [N, H]."""
    z, scale = problem.x @ values["0.weight"].T + values["0.bias"], values["scale 0"].exp()
    if problem.smooth:
        if not noisy:
            return torch.sigmoid(z)[:, None], torch.ones(len(z), 1, dtype=z.dtype)
        e, w = expectation_of_two(law, nodes)
        return torch.sigmoid(z[:, None] + scale * e), w.expand(len(z), -1)
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=z.dtype)] * 2)
    on = 1 - cdf(law, -z / scale) if noisy else (z > 0).to(z)
    probability = torch.where(patterns > 0, on[:, None], 1 - on[:, None]).prod(-1)
    return patterns.expand(len(z), -1, -1), probability


def zero_one_risk(z: Tensor, y: Tensor, scale: Tensor, law: str, nodes: int) -> Tensor:
    """P(argmax(z + σ ε) ≠ y) = 1 - ∫ p(ε_y) Π_c F((z_y + σ_y ε_y - z_c)/σ_c) dε_y [N, H] of logits z [N, H, C]."""
    scale = scale.expand(z.shape[-1])
    right = functional.one_hot(y, z.shape[-1]).bool()
    own = z[right[:, None].expand(z.shape)].view(*z.shape[:2], 1)
    own_scale = scale.expand(len(y), -1)[right].view(-1, 1, 1)
    others = z[~right[:, None].expand(z.shape)].view(*z.shape[:2], -1)
    other_scales = scale.expand(len(y), -1)[~right].view(len(y), 1, -1)
    kinks = ((others - own) / own_scale).detach()  # where F has a kink in its derivative, if the law has one
    fixed = edges_of(law)
    edges = torch.cat([fixed.expand(*z.shape[:2], -1), kinks.clamp(fixed.min(), fixed.max())], -1).sort(-1).values
    e, w = legendre(edges, 3 * nodes)
    ahead = (own + own_scale * e)[..., None] - others[..., None, :]  # [N, H, Q, C - 1]
    return 1 - (w * density(law, e) * cdf(law, ahead / other_scales[..., None, :]).prod(-1)).sum(-1)


def cross_entropy_risk(z: Tensor, y: Tensor, scale: Tensor, law: str, nodes: int) -> Tensor:
    """E[log(1 + exp(margin))] [N, H] of two logits z [N, H, 2], margin = v_other - v_y."""
    scale = scale.expand(2)
    side = (1 - 2 * y).to(z)  # 1 where the other class is class 1
    margin = side[:, None] * (z[..., 1] - z[..., 0])
    e, w = expectation_of_two(law, nodes)
    spread = e @ (scale * scale.new_tensor([-1, 1]))  # the noise of v_1 - v_0
    return functional.softplus(margin[..., None] + side[:, None, None] * spread) @ w


def objective(problem: Problem, values: dict[str, Tensor], law: str, noisy: tuple[str, ...], nodes: int) -> Tensor:
    """J with noise at the sites `noisy`, a scalar."""
    states, probability = hidden(problem, values, law, "0" in noisy, nodes)
    z, y = states @ values["2.weight"].T + values["2.bias"], problem.y
    scale = values["scale 2"].exp()
    if problem.loss == "zero_one":
        wrong = (z.argmax(-1) != y[:, None]).to(z)
        risk = zero_one_risk(z, y, scale, law, nodes) if "2" in noisy else wrong
    elif "2" in noisy:
        risk = cross_entropy_risk(z, y, scale, law, nodes)
    else:
        risk = functional.softplus((1 - 2 * y).to(z)[:, None] * (z[..., 1] - z[..., 0]))
    return (probability * risk).sum(1).mean()


def gradient(problem: Problem, law: str, learn: str, estimator: str, nodes: int = 8) -> dict[str, Tensor]:
    """The exact gradient by the names of `Problem.values`, and J itself as "loss".

    For `layerwise` the gradient of a site's parameters is that of J_l, and the loss that of the clean pass. Unless
    `learn` is "unit", a site has the mean of its units' log scales.
    """
    leaves = {
        name: (v.mean() if learn != "unit" and name.startswith("scale") else v).clone().requires_grad_()
        for name, v in problem.values.items()
    }
    total = objective(problem, leaves, law, () if estimator == "layerwise" else ("0", "2"), nodes)
    found = {"loss": total.detach()}
    for sites in (("0",), ("2",)) if estimator == "layerwise" else (("0", "2"),):
        names = [name for name in leaves if name.removeprefix("scale ").split(".")[0] in sites]
        risk = objective(problem, leaves, law, sites, nodes) if estimator == "layerwise" else total
        found |= dict(zip(names, torch.autograd.grad(risk, [leaves[name] for name in names]), strict=True))
    return found


def threshold_risk(net: GLR, on: Tensor, y: Tensor, scale: float) -> Tensor:
    """The mean expected loss of independent threshold units, from the probabilities of all their states.

    The loss is cross-entropy for `layerwise`, and else the 0-1 loss under noise at the last site, the last layer.

    Args:
        net: the network.
        on: probability of each unit to be on [N, D].
        y: targets [N].
        scale: σ at the last site.
    """
    risk_of = losses.expectation(losses.zero_one, Gaussian())
    assert risk_of is not None
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * on.shape[1])
    probability = torch.where(states > 0, on[:, None], 1 - on[:, None]).prod(-1)  # [N, states]
    z = net.model[-1](states).detach()
    total = torch.zeros((), dtype=torch.float64)
    for i, target in enumerate(y):
        targets = target.expand(len(z))
        if net.options.name == "layerwise":
            risk = functional.cross_entropy(z, targets, reduction="none")
        else:
            risk = risk_of(z, targets, torch.tensor(scale, dtype=torch.float64))
        total = total + probability[i] @ risk / len(y)
    return total
