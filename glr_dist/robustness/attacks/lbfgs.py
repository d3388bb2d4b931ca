"""L-BFGS adversarial examples (Szegedy et al.: Intriguing Properties of Neural Networks, 2014), computed in blocks.

Each example is a separate problem: min |x' - x|² + c ℓ(x') over x' in [0, 1], where ℓ = -log(1 - p_y) is small where
the label is not predicted. The smallest c that changes the prediction gives the smallest perturbation. The examples of
a block take their steps together, but each has its own curvature, step size and c, so examples are independent.

Shapes: n examples, points x [n, d], values [n], gradients [n, d].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from glr_dist.errors import NoGradientError
from glr_dist.robustness.attacks.base import Adversarial, Exact, Target, l2_norms, log_odds, usable
from glr_dist.streams import Key

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # x [n, d] -> values [n], gradients [n, d]

_MEMORY = 10  # pairs of steps and gradient changes
_HALVINGS = 12  # of a step size, before the line search fails
_BISECTIONS = 10  # of the final perturbation's scale
_SUFFICIENT = 1e-4  # fraction of the linear model's decrease (Armijo)


def minimise(objective: Objective, x: Tensor, iterations: int, seen: Callable[[Tensor], None]) -> Tensor:
    """Minimises n functions in parallel over the box [0, 1]^d by L-BFGS with projected steps.

    A variable at a bound stays there while the gradient pushes it outwards. The others take a quasi-Newton step,
    projected onto the box, whose size is halved until the value decreases enough (Armijo).

    Args:
        objective: computes values [n] and gradients [n, d] at points [n, d].
        x: starting points [n, d] in the box.
        iterations: maximum number of steps.
        seen: called with the points after each step.

    Returns:
        The last points [n, d].
    """
    value, gradient = objective(x)
    steps: list[
        tuple[Tensor, Tensor, Tensor]
    ] = []  # (s, y, 1 / s·y), newest last; 0 instead of 1 / s·y marks an unused pair
    alive = torch.ones_like(value, dtype=torch.bool)
    for _ in range(iterations):
        free = ~(((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)))
        reduced = gradient * free
        direction = -_inverse_hessian_times(reduced, steps) * free
        uphill = (direction * reduced).sum(1) >= 0
        direction = torch.where(uphill[:, None], -reduced, direction)
        if not steps:
            direction = direction / reduced.norm(dim=1, keepdim=True).clamp(min=1)
        size = alive.to(x.dtype)
        moved, new_value, new_gradient = x, value, gradient
        waiting = alive.clone()
        for _ in range(_HALVINGS):
            tried = (x + size[:, None] * direction).clamp(0, 1)
            tried_value, tried_gradient = objective(tried)
            expected = (gradient * (tried - x)).sum(1)
            taken = waiting & (tried_value <= value + _SUFFICIENT * expected) & (expected < 0)
            moved = torch.where(taken[:, None], tried, moved)
            new_value = torch.where(taken, tried_value, new_value)
            new_gradient = torch.where(taken[:, None], tried_gradient, new_gradient)
            waiting = waiting & ~taken
            if not bool(waiting.any()):
                break
            size = torch.where(waiting, size / 2, size)
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


def _inverse_hessian_times(gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Returns the approximate inverse Hessian times the gradient [n, d] by the two-loop recursion."""
    q = gradient
    alphas = []
    for s, y, inverse in reversed(steps):
        alpha = inverse * (s * q).sum(1)
        alphas.append(alpha)
        q = q - alpha[:, None] * y
    scale = torch.ones_like(gradient[:, :1])
    for _, y, inverse in steps:  # s·y / y·y of each example's newest pair
        fits = inverse > 0
        new = 1 / (inverse * (y * y).sum(1)).where(fits, torch.ones_like(inverse))
        scale = torch.where(fits[:, None], new[:, None], scale)
    q = q * scale
    for (s, y, inverse), alpha in zip(steps, reversed(alphas), strict=True):
        q = q + (alpha - inverse * (y * q).sum(1))[:, None] * s
    return q


@dataclass(frozen=True)
class LBFGS:
    """Searches for the smallest L2 perturbation that changes the prediction, with images in [0, 1].

    Args:
        iterations: steps of the minimisation for each c.
        searches: number of values of c: multiplied by ten until one changes the prediction, then bisected.
        first: first value of c.
    """

    iterations: int = 20
    searches: int = 9
    first: float = 1.0

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        if not isinstance(target, Exact):
            raise NoGradientError("L-BFGS needs the loss and its exact gradient, not an estimate")
        shape, clean = x.shape, x.flatten(1)
        _, tested = usable(target.gradients(x, y, not_the_label))
        best = clean.clone()
        smallest = torch.full_like(clean[:, 0], torch.inf).where(target.scores(x).argmax(1) == y, 0)
        low, high = torch.zeros_like(smallest), torch.full_like(smallest, torch.inf)
        c = torch.full_like(smallest, self.first)

        def seen(point: Tensor) -> None:
            """Keeps the smallest perturbation that changes the prediction."""
            nonlocal best, smallest
            norms = l2_norms(point - clean)
            works = (target.scores(point.view(shape)).argmax(1) != y) & (norms < smallest)
            best, smallest = torch.where(works[:, None], point, best), torch.where(works, norms, smallest)

        def objective(point: Tensor) -> tuple[Tensor, Tensor]:
            losses, gradients = target.losses_and_gradients(point.view(shape), y, not_the_label)
            shift = point - clean
            return (shift * shift).sum(1) + c * losses, 2 * shift + c[:, None] * gradients.flatten(1)

        for _ in range(self.searches):
            point = minimise(objective, clean, self.iterations, seen)
            works = target.scores(point.view(shape)).argmax(1) != y
            low, high = torch.where(works, low, c), torch.where(works, c, high)
            c = torch.where(high.isinf(), c * 10, torch.where(low == 0, high / 10, (low * high).sqrt()))
        # Bisects the scale of each perturbation down to the decision boundary.
        near, far = torch.zeros_like(smallest), torch.ones_like(smallest)
        for _ in range(_BISECTIONS):
            share = (near + far) / 2
            works = target.scores((clean + share[:, None] * (best - clean)).view(shape)).argmax(1) != y
            near, far = torch.where(works, near, share), torch.where(works, share, far)
        return Adversarial((clean + far[:, None] * (best - clean)).view(shape), tested)


def not_the_label(outputs: Tensor, y: Tensor) -> Tensor:
    """Returns -log(1 - p_y) [n], p the softmax of class scores [n, classes]: small where the label is unlikely."""
    return softplus(-log_odds(outputs, y))
