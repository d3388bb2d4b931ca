"""Projected gradient descent (Madry et al.: Towards Deep Learning Models Resistant to Adversarial Attacks, 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glr_dist.robustness.attacks.base import Adversarial, Target, lengths, log_odds, usable
from glr_dist.streams import Key, generator


@dataclass(frozen=True)
class PGD:
    """Steps along the derivative of the cross-entropy (`log_odds`), each projected onto the box and the ball about x.

    L∞: x' ← Π(x' + α sign g); L2: x' ← Π(x' + α g / |g|).

    Args:
        eps: radius of the ball.
        steps: how many.
        step_size: α in units of ε.
        norm: "linf" or "l2".
        random_start: begin at a random point of the ball instead of x.
        stop: an example stays at the first point that fools the target. Not for a surrogate, nor a target whose
            predictions are random: the farther beyond the border, the better.
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
        found = adversarial
        for _ in range(self.steps):
            slopes, tested = usable(target.slopes(adversarial, y, log_odds), tested)
            step = self.step_size * self.eps * self._direction(slopes)
            # The ball's centre is in the box, so the projection stays in it.
            adversarial = x + self._projected((adversarial + step).clamp(0, 1) - x)
            found = torch.where(_per_example(fooled, x), found, adversarial)
            if self.stop:
                fooled = fooled | (target.scores(adversarial).argmax(1) != y)
        assert tested is not None
        return Adversarial(found, tested)

    def _start(self, x: Tensor, key: Key) -> Tensor:
        stream = generator(key, x.device)
        if self.norm == "linf":
            start = torch.empty_like(x).uniform_(-self.eps, self.eps, generator=stream)
        else:  # uniform in the ball: a direction, and a radius that d uniforms to one fill
            start = torch.empty_like(x).normal_(generator=stream)
            radius = torch.rand(len(x), generator=stream, device=x.device) ** (1 / max(1, x[:1].numel()))
            start = start * _per_example(self.eps * radius / lengths(start), x)
        return (x + start).clamp(0, 1)

    def _direction(self, slopes: Tensor) -> Tensor:
        if self.norm == "linf":
            return slopes.sign()
        return slopes / _per_example(lengths(slopes).clamp(min=torch.finfo(slopes.dtype).tiny), slopes)

    def _projected(self, perturbation: Tensor) -> Tensor:
        if self.norm == "linf":
            return perturbation.clamp(-self.eps, self.eps)
        length = lengths(perturbation).clamp(min=torch.finfo(perturbation.dtype).tiny)
        return perturbation * _per_example((self.eps / length).clamp(max=1), perturbation)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
