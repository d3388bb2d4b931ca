"""Networks as attacks see them: input gradients by autograd or by the likelihood ratio method.

Shapes: n examples, images x [n, C, H, W], labels y [n], class scores [n, classes].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glr_dist.errors import NoGradientError
from glr_dist.glr import GLR
from glr_dist.losses import Loss, per_example
from glr_dist.streams import Key

Scores = Callable[[Tensor], Tensor]  # images [n, C, H, W] -> class scores [n, classes]


class WhiteBox:
    """Target with exact gradients by autograd, where they exist.

    Args:
        network: images -> class scores.
    """

    def __init__(self, network: Scores) -> None:
        self.network = network

    def scores(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)

    def gradients(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        return self.losses_and_gradients(x, y, loss)[1]

    def losses_and_gradients(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            losses = per_example(loss(self.network(x), y), len(x))
        gradients = None
        if losses.requires_grad:
            (gradients,) = torch.autograd.grad(losses, x, torch.ones_like(losses), allow_unused=True)
        if gradients is None:
            raise NoGradientError("no gradient reaches the input: the network has a discontinuous activation")
        return losses.detach(), gradients


class Averaged:
    """Mean class scores over noisy passes. Every call uses the same streams, so this is a deterministic function.

    Args:
        net: the network with its noise, prepared.
        key: key of the noise.
        draws: number of passes.

    Reference:
        Athalye, Carlini, Wagner: Obfuscated Gradients Give a False Sense of Security, ICML 2018 (expectation over
        transformation).
    """

    def __init__(self, net: GLR, key: Key, draws: int) -> None:
        self._net, self._key, self._draws = net, key, draws

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([self._net.noisy(x, self._key._replace(shared_pass=i)) for i in range(self._draws)]).mean(0)


class LikelihoodRatio:
    """Target with likelihood ratio estimates of ∂E[loss]/∂x, the expectation over noise at every site.

    This attacks networks whose activations or losses have no derivative.

    Args:
        shifted: the network with its input as a parameter (`input_gradient.shifted`).
        network: images -> class scores, as the network predicts.
        seed: seed of the noise; each estimate uses new draws.
    """

    def __init__(self, shifted: GLR, network: Scores, seed: int) -> None:
        self.network, self._shifted = network, shifted
        shifted.seed, shifted.step = seed, 0

    def scores(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)

    def gradients(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        gradients = self._shifted.gradients(x, y, loss).grads
        self._shifted.step += 1
        return gradients["0.r"][: len(x)] * len(x)  # the objective is a mean over the examples
