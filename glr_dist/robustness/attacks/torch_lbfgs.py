"""The "L-BFGS" of the paper's experiments: one step of `torch.optim.LBFGS` on each image. A weak attack, for its table.

It follows the gradient of the negative cross-entropy without a box, a distance term or a line search, and clips at the
end: it hardly moves most images and destroys some. See `lbfgs` for the attack of that name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS as Optimizer

from glr_dist.errors import NoGradientError
from glr_dist.robustness.attacks.base import Adversarial, Exact, Target, usable
from glr_dist.streams import Key


@dataclass(frozen=True)
class TorchLBFGS:
    """One step of torch's L-BFGS on -cross-entropy, clipped to [0, 1] afterwards; each image has its own history.

    Args:
        lr: learning rate.
        iterations: maximum number of iterations of the step (torch's default).
    """

    lr: float = 0.05
    iterations: int = 20

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        if not isinstance(target, Exact):
            raise NoGradientError("L-BFGS needs exact losses and gradients")
        _, tested = usable(target.gradients(x, y, _negative))
        moved = [self._moved(target, x[i], y[i : i + 1]) for i in range(len(y))]
        return Adversarial(torch.stack(moved).clamp(0, 1) if moved else x, tested)

    def _moved(self, target: Exact, x: Tensor, y: Tensor) -> Tensor:
        point = x.clone()[None].requires_grad_()
        optimizer = Optimizer([point], lr=self.lr, max_iter=self.iterations)

        def closure() -> Tensor:
            losses, point.grad = target.losses_and_gradients(point.detach(), y, _negative)
            return losses.sum()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        moved = point.detach()[0]
        return torch.where(torch.isfinite(moved), moved, x)  # a step that overflows leaves the pixel


def _negative(outputs: Tensor, y: Tensor) -> Tensor:
    return -cross_entropy(outputs, y, reduction="none")
