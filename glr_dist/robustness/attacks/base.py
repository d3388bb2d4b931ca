"""What an attack asks of its target, and what it gives back.

Shapes: n examples, images x [n, C, H, W] in [0, 1], labels y [n], class scores [n, classes].
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from glr_dist.errors import ZeroGradientError
from glr_dist.losses import Loss
from glr_dist.streams import Key


class Adversarial(NamedTuple):
    """What an attack found.

    Attributes:
        images: [n, C, H, W] in [0, 1].
        tested: [n], False where the attack could try nothing, because every derivative it saw was zero: that such an
            example is still classified well says nothing.
    """

    images: Tensor
    tested: Tensor


class Target(Protocol):
    """A network as an attack sees it."""

    def scores(self, x: Tensor) -> Tensor:
        """Class scores [n, classes]; the largest one is the prediction."""
        ...

    def slopes(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """The derivative of each example's loss by its own image [n, C, H, W], or an unbiased estimate of it.

        Raises:
            NoGradientError: no derivative reaches the input.
        """
        ...


@runtime_checkable
class Exact(Target, Protocol):
    """A target whose losses can be told together with their derivatives, without noise of an estimate."""

    def losses_and_slopes(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The losses [n], and `slopes`."""
        ...


class Attack(Protocol):
    """Looks for images near x that the target takes for something else than y."""

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        """Attacks a block of images; what is random comes from the streams of `key`.

        Raises:
            NoGradientError: the attack follows a derivative, and none reaches the input.
            ZeroGradientError: it is zero for every example.
        """
        ...


def log_odds(outputs: Tensor, y: Tensor) -> Tensor:
    """The log odds log (1 - p_y) / p_y, p the softmax of class scores [n, classes]: against the label; [n].

    Its derivative is that of the cross-entropy divided by 1 - p_y: the same direction, but it does not vanish, and
    lose its digits, where the network is sure of itself.
    """
    others = outputs.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - outputs.gather(1, y[:, None])[:, 0]


def usable(slopes: Tensor, tested: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The derivatives that can be followed, zero elsewhere, and which examples have had one, now or before (`tested`).

    Raises:
        ZeroGradientError: no example has: its derivative is zero or not finite.
    """
    finite = torch.isfinite(slopes).flatten(1).all(1)
    slopes = torch.where(finite.view(-1, *[1] * (slopes.dim() - 1)), slopes, 0)
    here = slopes.flatten(1).any(1)
    found = here if tested is None else here | tested
    if len(found) and not bool(found.any()):
        raise ZeroGradientError("the input gradient is zero, or not finite, for every example")
    return slopes, found


def lengths(perturbation: Tensor) -> Tensor:
    """The L2 norm of each example [n]."""
    norms: Tensor = perturbation.flatten(1).norm(dim=1)
    return norms
