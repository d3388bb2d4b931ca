"""Adversarial training: every few steps, images that FGSM or PGD has made for the network as it is.

Shapes: images x [B, C, H, W] in [0, 1], labels y [B].
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from glr_dist.config import Adversarial
from glr_dist.errors import ConfigError
from glr_dist.execution.reproducible import reproducible
from glr_dist.glr import GLR, scale_key
from glr_dist.input_gradient import shifted, spreads
from glr_dist.losses import cross_entropy
from glr_dist.outputs import selected
from glr_dist.streams import Key, Role, generator

_STRIDE = 2.5  # a PGD of n steps walks n · 2.5 ε / n: to the far side of the ball and back


class Adversary:
    """Makes adversarial images for one network, whose parameters it follows.

    x' = clip(x + ε sign g) for one step; for several steps, projected gradient ascent from a random point of the
    L∞ ball. g estimates the gradient of the expected cross-entropy with respect to x, under noise at every site: it
    exists for threshold networks too, and nothing is propagated backwards. Or g is the derivative of the network
    without noise.

    Args:
        config: the section `training.adversarial`.
        net: the network that is trained, prepared.
        examples: images of the largest batch; only their number, shape and type matter.
        seed: seed of the run.

    Raises:
        ConfigError: the noise or the derivative that `gradient` needs does not exist.
        SiteError: the input reaches the loss without passing a site.

    Reference:
        Goodfellow, Shlens, Szegedy: Explaining and Harnessing Adversarial Examples, ICLR 2015; Madry et al.: Towards
        Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """

    def __init__(self, config: Adversarial, net: GLR, examples: Tensor, seed: int) -> None:
        self._config, self._net, self._seed = config, net, seed
        if config.gradient == "exact":
            self._model = copy.deepcopy(net.model).eval().requires_grad_(False)
            self._exact(examples[:1], torch.zeros(1, dtype=torch.int64, device=examples.device))
            return
        if net.noise is None and config.spread is None:
            raise ConfigError(
                "training.adversarial: the network has no noise with which a gradient could be estimated; give the "
                "spread of one, or gradient: exact"
            )
        scales = dict.fromkeys((site.name for site in net.network.sites), 1.0)
        self._estimate = shifted(net, examples, scales, copies=config.copies, head="auto")
        # Streams of its own: those of training's estimate at the same step would favour the noise that it draws.
        self._estimate.seed = int.from_bytes(Key(seed, role=Role.ADVERSARIAL).digest(7), "little")
        self._model = self._estimate.model.get_submodule("1")

    def perturbed(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """Returns adversarial images for the present parameters of the network; in the steps between, x itself.

        Args:
            x: the images of a step.
            y: their labels.
            step: number of the step, which decides all randomness.
        """
        if step % self._config.every:
            return x
        epsilon, steps = self._config.epsilon, self._config.steps
        with reproducible():
            self._model.load_state_dict(self._net.model.state_dict())
            found, length = x, epsilon
            if steps > 1:
                stream = generator(Key(self._seed, step=step, role=Role.ADVERSARIAL), x.device)
                start = torch.rand(x.shape, generator=stream, dtype=x.dtype, device=x.device)
                found, length = (x + epsilon * (2 * start - 1)).clamp(0, 1), _STRIDE * epsilon / steps
            for number in range(steps):
                moved = found + length * self._gradient(found, y, step * steps + number).sign()
                found = (x + (moved - x).clamp(-epsilon, epsilon)).clamp(0, 1)
        return found

    def _gradient(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        if self._config.gradient == "exact":
            return self._exact(x, y)
        spread = self._config.spread
        scales = self._net.scales() if spread is None else {k: spread * s for k, s in spreads(self._net, x).items()}
        for name, scale in zip([site.name for site in self._estimate.network.sites], scales.values(), strict=True):
            self._estimate.log_scales[scale_key(name)].data.copy_(torch.as_tensor(scale).log())
        self._estimate.step = step
        return self._estimate.gradients(x, y, cross_entropy).grads["0.r"][: len(x)]

    def _exact(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            losses = cross_entropy(selected(self._model(x), self._net.network.output), y)
        gradient = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
        if gradient is None:
            raise ConfigError(
                "training.adversarial.gradient: 'exact' is not allowed: no derivative reaches "
                "the input; use 'estimated'"
            )
        return gradient
