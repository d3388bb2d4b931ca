"""The slope of many estimates against a reference: 1 for an unbiased estimate, whatever its noise.

With a differentiable objective the reference of a parameter is autograd's gradient g of J at the same sites, and
slope = ⟨E ĝ, g⟩ / ⟨g, g⟩. Without one it is a difference of J with common noise along a direction d, and the estimates
are taken at random places between its ends, so that slope = E ⟨ĝ(θ + t d), d⟩ / (J(θ + d) - J(θ - d)) · 2 is exactly 1
for steps of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from glr_dist import GLR
from glr_dist.losses import cross_entropy
from glr_dist.streams import Key
from glr_dist.trees import Tree, copied, count

Loss = Callable[[Tensor, Tensor], Tensor]

Z = 5.0  # greatest deviation from 1 in standard errors; in some 10^4 slopes of 24 steps one deviates more
_LEAST_ERROR = 0.01
_ZERO = 1e-12  # of the greatest gradient: rounding


class Slope(NamedTuple):
    """Slope of the estimates of one parameter, its standard error, and the cosine of their mean to the reference."""

    slope: float
    error: float
    cosine: float

    @property
    def z(self) -> float:
        """Deviation from 1 in standard errors."""
        return (self.slope - 1) / self.error


def repeated(x: Tree, times: int) -> Tree:
    """Returns each example `times` times, since the noise of each is its own."""
    return copied(x, times)


def slopes(
    model: nn.Module,
    x: Tree,
    y: Tree,
    loss: Loss = cross_entropy,
    *,
    noise: object = 0.5,
    estimator: str = "conditional",
    steps: int = 24,
    copies: int = 32,
    repeats: int = 16,
    samples: int = 5_000,
    differences: bool = False,
    **options: object,
) -> dict[str, Slope]:
    """Returns the slope of each parameter's estimates.

    Args:
        model: the network, in float64.
        x, y, loss: inputs, targets and loss.
        noise, estimator, copies, options: what `GLR` takes.
        steps: number of estimates.
        repeats: how often each example stands in the batch of an estimate.
        samples: noisy passes of each example behind the reference.
        differences: True if the reference is a difference of J.
    """
    net = GLR(model, noise, estimator, copies=copies, seed=1, example_block=count(y, "y") * repeats, **options)
    chosen = {name: value for name, value in options.items() if name in ("sites", "site_names", "output")}
    references = [
        GLR(model, noise, "pathwise", seed=seed, example_block=count(y, "y") * samples, **chosen) for seed in (2, 3)
    ]
    few, many = (repeated(x, repeats), repeated(y, repeats)), (repeated(x, samples), repeated(y, samples))
    if differences:
        return {name: _slope_by_difference(net, references[0], name, few, many, loss, steps) for name in _names(net, x)}
    one, other = (reference.gradients(*many, loss).grads for reference in references)
    drawn: dict[str, list[Tensor]] = {name: [] for name in one}
    one, other = ({name: _real(grad) for name, grad in grads.items()} for grads in (one, other))
    for step in range(steps):
        net.step = step
        for name, grad in net.gradients(*few, loss).grads.items():
            drawn[name].append(_real(grad))
    size = max(grad.norm().item() for grad in one.values())
    return {name: _slope(torch.stack(drawn[name]), one[name], other[name], size) for name in one}


def _real(grad: Tensor) -> Tensor:
    return torch.view_as_real(grad) if grad.is_complex() else grad


def _names(net: GLR, x: Tree) -> list[str]:
    net.prepare(x)
    return list(net.network.parameters)


def _slope(drawn: Tensor, one: Tensor, other: Tensor, size: float) -> Slope:
    """Returns the slope against the mean of two independent reference gradients, whose difference shows their error.

    Where the gradient is 0, such as that of a bias before a norm, the deviation from 1 is that of the estimates from 0.
    """
    gradient = (one + other) / 2
    square = gradient.square().sum()
    if square.sqrt() <= _ZERO * size:
        error = (drawn.std(0) / len(drawn) ** 0.5).clamp(min=_ZERO * size)
        return Slope(1 + _LEAST_ERROR * (drawn.mean(0) / error).abs().max().item(), _LEAST_ERROR, 1.0)
    each = (drawn * gradient).flatten(1).sum(1) / square
    slope = _summary(each, torch.cosine_similarity(drawn.mean(0).flatten(), gradient.flatten(), 0).item())
    relative = ((one - other).norm() / (2 * square.sqrt())).item()
    return slope._replace(error=(slope.error**2 + relative**2) ** 0.5)


def _slope_by_difference(
    net: GLR,
    reference: GLR,
    name: str,
    few: tuple[Tree, Tree],
    many: tuple[Tree, Tree],
    loss: Loss,
    steps: int,
) -> Slope:
    parameter = net.network.parameters[name]
    net.step = 10**6
    direction = net.gradients(*few, loss).grads[name]  # some direction along which J changes
    if not direction.any():
        direction = torch.ones_like(direction)
    direction = direction / direction.norm() * parameter.norm().clamp(min=0.3) / 2
    ends = []
    for t in (1, -1):
        with _moved(parameter, t * direction), torch.no_grad():
            ends.append(loss(reference.noisy(many[0], Key(3)), many[1]))
    difference = (ends[0] - ends[1]) / 2
    drawn = []
    for step in range(steps):
        net.step = step
        t = (2 * step + 1) / steps - 1 + (2 * torch.rand(()).item() - 1) / steps
        with _moved(parameter, t * direction):
            drawn.append((net.gradients(*few, loss).grads[name] * direction).sum())
    slope = _summary(torch.stack(drawn) / difference.mean(), 1.0)
    relative = (difference.std() / len(difference) ** 0.5 / difference.mean()).abs().item()
    return slope._replace(error=(slope.error**2 + (slope.slope * relative) ** 2) ** 0.5)


def _summary(each: Tensor, cosine: float) -> Slope:
    return Slope(each.mean().item(), max((each.std() / len(each) ** 0.5).item(), _LEAST_ERROR), cosine)


@contextmanager
def _moved(parameter: nn.Parameter, step: Tensor) -> Iterator[None]:
    kept = parameter.data
    try:
        parameter.data = kept + step
        yield
    finally:
        parameter.data = kept
