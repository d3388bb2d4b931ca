"""Projected gradient descent (Madry et al.: Towards Deep Learning Models Resistant to Adversarial Attacks, 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glr_dist.robustness.attacks.base import Adversarial, Target, l2_norms, log_odds, usable
from glr_dist.streams import Key, generator


@dataclass(frozen=True)
class PGD:
    """Gradient ascent on the cross-entropy (`log_odds`), projected onto the pixel range and the ε-ball around x.

    L∞: x' ← Π(x' + α sign g); L2: x' ← Π(x' + α g / |g|).

    Args:
        eps: ε, radius of the ball.
        steps: number of steps.
        step_size: α in units of ε.
        norm: "linf" or "l2".
        random_start: start at a random point of the ball instead of at x.
        stop: keep the first point that changes the target's prediction. Turn this off for a surrogate and for a target
            with random predictions: a point farther beyond the decision boundary transfers better.
    """

    eps: float
    steps: int = 20
    step_size: float = 0.15
    norm: str = "linf"
    random_start: bool = True
    stop: bool = True

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        adversarial = self._start(x, key) if self.random_start else x
        tested, fooled = None, torch.zeros_like(y, dtype=torch.bool)
        best = adversarial
        for _ in range(self.steps):
            gradients, tested = usable(target.gradients(adversarial, y, log_odds), tested)
            step = self.step_size * self.eps * self._direction(gradients)
            # The centre of the ball lies in the pixel range, so the projection onto the ball stays in the range.
            adversarial = x + self._projected((adversarial + step).clamp(0, 1) - x)
            best = torch.where(_per_example(fooled, x), best, adversarial)
            if self.stop:
                fooled = fooled | (target.scores(adversarial).argmax(1) != y)
        assert tested is not None
        return Adversarial(best, tested)

    def _start(self, x: Tensor, key: Key) -> Tensor:
        stream = generator(key, x.device)
        if self.norm == "linf":
            start = torch.empty_like(x).uniform_(-self.eps, self.eps, generator=stream)
        else:  # uniform in the d-ball: a random direction, and a radius with density proportional to r^(d-1)
            start = torch.empty_like(x).normal_(generator=stream)
            radius = torch.rand(len(x), generator=stream, device=x.device) ** (1 / max(1, x[:1].numel()))
            start = start * _per_example(self.eps * radius / l2_norms(start), x)
        return (x + start).clamp(0, 1)

    def _direction(self, gradients: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradients.sign()
        return gradients / _per_example(l2_norms(gradients).clamp(min=torch.finfo(gradients.dtype).tiny), gradients)

    def _projected(self, perturbation: Tensor) -> Tensor:
        if self.norm == "linf":
            return perturbation.clamp(-self.eps, self.eps)
        norms = l2_norms(perturbation).clamp(min=torch.finfo(perturbation.dtype).tiny)
        return perturbation * _per_example((self.eps / norms).clamp(max=1), perturbation)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
