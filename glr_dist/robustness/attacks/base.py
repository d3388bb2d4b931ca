"""The interface between attacks and the networks that they attack.

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
    """Result of an attack.

    Attributes:
        images: perturbed images [n, C, H, W] in [0, 1].
        tested: [n], False where every gradient that the attack saw was zero. Such an example was never attacked, so
            its correct prediction is not evidence of robustness.
    """

    images: Tensor
    tested: Tensor


class Target(Protocol):
    """A network as an attack sees it."""

    def scores(self, x: Tensor) -> Tensor:
        """Returns the class scores [n, classes]; the class with the largest score is predicted."""
        ...

    def gradients(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """Returns the gradient of each example's loss with respect to its image [n, C, H, W].

        The result may be an unbiased estimate.

        Raises:
            NoGradientError: no gradient reaches the input.
        """
        ...


@runtime_checkable
class Exact(Target, Protocol):
    """A target that computes its losses and their exact gradients."""

    def losses_and_gradients(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Returns the losses [n] and their gradients [n, C, H, W]."""
        ...


class Attack(Protocol):
    """Searches near x for images that the target does not classify as y."""

    def __call__(self, target: Target, x: Tensor, y: Tensor, key: Key) -> Adversarial:
        """Attacks a block of images; all random draws come from the streams of `key`.

        Raises:
            NoGradientError: the attack needs a gradient, and none reaches the input.
            ZeroGradientError: the gradient is zero for every example.
        """
        ...


def log_odds(outputs: Tensor, y: Tensor) -> Tensor:
    """Returns log (1 - p_y) / p_y, the log odds against the label, with p the softmax of `outputs`.

    Its gradient is that of the cross-entropy divided by 1 - p_y. The direction is the same, but the gradient neither
    vanishes nor loses precision where the network is confident.

    Args:
        outputs: class scores [n, classes].
        y: labels [n].

    Returns:
        The log odds [n].
    """
    others = outputs.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - outputs.gather(1, y[:, None])[:, 0]


def usable(gradients: Tensor, tested: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sets gradients that are not finite to zero and marks the examples that have a nonzero gradient.

    Args:
        gradients: [n, …].
        tested: examples that had one in an earlier step [n].

    Returns:
        (gradients [n, …], examples that have or had a nonzero gradient [n]).

    Raises:
        ZeroGradientError: no example has or had one.
    """
    finite = torch.isfinite(gradients).flatten(1).all(1)
    gradients = torch.where(finite.view(-1, *[1] * (gradients.dim() - 1)), gradients, 0)
    nonzero = gradients.flatten(1).any(1)
    tested = nonzero if tested is None else nonzero | tested
    if len(tested) and not bool(tested.any()):
        raise ZeroGradientError("the input gradient is zero, or not finite, for every example")
    return gradients, tested


def l2_norms(perturbation: Tensor) -> Tensor:
    """Returns the L2 norm of each example's perturbation [n]."""
    norms: Tensor = perturbation.flatten(1).norm(dim=1)
    return norms
