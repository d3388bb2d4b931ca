"""L-BFGS adversarial examples (Szegedy et al.: Intriguing Properties of Neural Networks, 2014), a block at a time.

Each example is a problem of its own: min |x' - x|² + c ℓ(x') over x' in [0, 1], where ℓ = -log(1 - p_y) is small where
the label is not predicted. The least c that works gives the smallest perturbation. All examples of a block take their
steps together, but each has its own curvature, step length and c, so that none depends on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from glr_dist.errors import NoGradientError
from glr_dist.robustness.attacks.base import Adversarial, Exact, Target, lengths, log_odds, usable
from glr_dist.streams import Key

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # x [n, d] -> values [n], gradients [n, d]

_MEMORY = 10  # pairs of steps and gradient changes
_HALVINGS = 12  # of a step, until it is given up
_SHORTENINGS = 10
_SUFFICIENT = 1e-4  # of the decrease that the slope promises


def minimise(objective: Objective, x: Tensor, iterations: int, seen: Callable[[Tensor], None]) -> Tensor:
    """Minimises n functions side by side over the box [0, 1]^d, by L-BFGS with projected steps.

    Variables at a bound that the gradient pushes outwards rest for a step; the others take a quasi-Newton step,
    projected onto the box, halved until the value decreases enough (Armijo).

    Args:
        objective: values [n] and gradients [n, d] at points [n, d].
        x: where to begin [n, d], in the box.
        iterations: how many steps at most.
        seen: is told each point that was accepted.
    """
    value, gradient = objective(x)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []  # (s, y, 1 / s·y), the newest last; 1 / s·y is 0 for no pair
    alive = torch.ones_like(value, dtype=torch.bool)
    for _ in range(iterations):
        free = ~(((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)))
        slope = gradient * free
        direction = -_curved(slope, steps) * free
        uphill = (direction * slope).sum(1) >= 0
        direction = torch.where(uphill[:, None], -slope, direction)
        if not steps:
            direction = direction / slope.norm(dim=1, keepdim=True).clamp(min=1)
        length = alive.to(x.dtype)
        moved, new_value, new_gradient = x, value, gradient
        waiting = alive.clone()
        for _ in range(_HALVINGS):
            tried = (x + length[:, None] * direction).clamp(0, 1)
            tried_value, tried_gradient = objective(tried)
            promised = (gradient * (tried - x)).sum(1)
            taken = waiting & (tried_value <= value + _SUFFICIENT * promised) & (promised < 0)
            moved = torch.where(taken[:, None], tried, moved)
            new_value = torch.where(taken, tried_value, new_value)
            new_gradient = torch.where(taken[:, None], tried_gradient, new_gradient)
            waiting = waiting & ~taken
            if not bool(waiting.any()):
                break
            length = torch.where(waiting, length / 2, length)
        s, y = moved - x, new_gradient - gradient
        along = (s * y).sum(1)
        curved = along > 1e-10 * s.norm(dim=1) * y.norm(dim=1)
        steps = [
            *steps[-_MEMORY + 1 :],
            (s, y, torch.where(curved, 1 / along.where(curved, torch.ones_like(along)), 0)),
        ]
        alive = alive & ~waiting
        x, value, gradient = moved, new_value, new_gradient
        seen(x)
        if not bool(alive.any()):
            break
    return x


def _curved(slope: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian's approximation times the slope [n, d], by the two-loop recursion."""
    q = slope
    alphas = []
    for s, y, inverse in reversed(steps):
        alpha = inverse * (s * q).sum(1)
        alphas.append(alpha)
        q = q - alpha[:, None] * y
    scale = torch.ones_like(slope[:, :1])
    for _, y, inverse in steps:  # s·y / y·y of the newest pair of each example
        fits = inverse > 0
        new = 1 / (inverse * (y * y).sum(1)).where(fits, torch.ones_like(inverse))
        scale = torch.where(fits[:, None], new[:, None], scale)
    q = q * scale
    for (s, y, inverse), alpha in zip(steps, reversed(alphas), strict=True):
        q = q + (alpha - inverse * (y * q).sum(1))[:, None] * s
    return q


@dataclass(frozen=True)
class LBFGS:
    """The smallest perturbation in L2 that changes the prediction, images within [0, 1].

    Args:
        iterations: of the minimisation, for each c.
        searches: values of c: multiplied by ten until one works, then bisected.
        first: the first c.
    """

    iterations: int = 20
    searches: int = 9
    first: float = 1.0

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        if not isinstance(target, Exact):
            raise NoGradientError("L-BFGS needs the loss itself beside its derivative, not an estimate")
        shape, clean = x.shape, x.flatten(1)
        _, tested = usable(target.slopes(x, y, not_the_label))
        best = clean.clone()
        shortest = torch.full_like(clean[:, 0], torch.inf).where(target.scores(x).argmax(1) == y, 0)
        low, high = torch.zeros_like(shortest), torch.full_like(shortest, torch.inf)
        c = torch.full_like(shortest, self.first)

        def seen(point: Tensor) -> None:
            """Keeps the shortest perturbation that works."""
            nonlocal best, shortest
            size = lengths(point - clean)
            works = (target.scores(point.view(shape)).argmax(1) != y) & (size < shortest)
            best, shortest = torch.where(works[:, None], point, best), torch.where(works, size, shortest)

        def objective(point: Tensor) -> tuple[Tensor, Tensor]:
            losses, slopes = target.losses_and_slopes(point.view(shape), y, not_the_label)
            shift = point - clean
            return (shift * shift).sum(1) + c * losses, 2 * shift + c[:, None] * slopes.flatten(1)

        for _ in range(self.searches):
            point = minimise(objective, clean, self.iterations, seen)
            works = target.scores(point.view(shape)).argmax(1) != y
            low, high = torch.where(works, low, c), torch.where(works, c, high)
            c = torch.where(high.isinf(), c * 10, torch.where(low == 0, high / 10, (low * high).sqrt()))
        # At last each one is shortened along its own line, as far as the prediction stays changed.
        near, far = torch.zeros_like(shortest), torch.ones_like(shortest)
        for _ in range(_SHORTENINGS):
            share = (near + far) / 2
            works = target.scores((clean + share[:, None] * (best - clean)).view(shape)).argmax(1) != y
            near, far = torch.where(works, near, share), torch.where(works, share, far)
        return Adversarial((clean + far[:, None] * (best - clean)).view(shape), tested)


def not_the_label(outputs: Tensor, y: Tensor) -> Tensor:
    """-log(1 - p_y) of class scores [n, classes], p their softmax: small where the label is unlikely; [n]."""
    return softplus(-log_odds(outputs, y))
