"""The random classifier of a network: noisy passes with its trained noise, and what an attack sees of their mean.

Shapes: images x [n, C, H, W]; h [n, *S] what the smoothing noise is added to, the first site's logits or the image;
class scores [draws, classes].
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glr_dist.errors import ConfigError, SiteError
from glr_dist.glr import GLR
from glr_dist.losses import Loss
from glr_dist.noise import Gaussian
from glr_dist.streams import Key, generator

_ELEMENTS = 2**22  # of the widest tensor of a pass
_MOST = 10_000  # draws of a tile


@dataclass(frozen=True)
class Smoothing:
    """A network with Gaussian noise that smooths it, and with its own noise at all other sites.

    Each draw of the smoothing noise has several passes, with the network's own noise drawn anew in each; their mean
    scores are those of the draw. So a threshold unit passes on more than one bit.

    Attributes:
        net: the network, in evaluation mode, prepared.
        input_noise: σ of the noise on the input; None: the noise of the first site smooths.
        passes: passes of a draw.
        tile: draws that go through the network together, and have one stream; a function of the network alone.
    """

    net: GLR
    input_noise: float | None
    passes: int
    tile: int

    @classmethod
    def of(cls, net: GLR, input_noise: float | None, passes: int, x: Tensor) -> Smoothing:
        """Returns the random classifier of a network; the images x serve to prepare it and for their size.

        Raises:
            ConfigError: all passes of a draw would be the same.
        """
        net.prepare(x[:2])
        sites = net.network.sites
        if passes > 1 and net.noise is None:
            raise ConfigError(f"passes: {passes} is not allowed: the network has no noise of its own; use 1")
        if passes > 1 and input_noise is None and len(sites) == 1:
            raise ConfigError(
                f"passes: {passes} is not allowed: the only noise is that of '{sites[0].name}', which smooths; use 1, "
                "or input_noise=0.25"
            )
        width = max([x[0].numel(), *(site.width for site in sites)])
        return cls(net, input_noise, passes, max(1, min(_MOST, _ELEMENTS // width)))

    def copied(self) -> Smoothing:
        """Returns a copy with its own network for another thread."""
        return replace(self, net=copy.deepcopy(self.net))

    def counts(self, x: Tensor, key: Key, draws: int) -> Tensor:
        """Returns how often each class comes first [classes] among the draws of one image.

        Args:
            x: one image [C, H, W].
            key: names the streams; each tile of draws has its own.
            draws: number of draws.

        Raises:
            FloatingPointError: a score is not finite.
        """
        total: Tensor | None = None
        for _, scores in self._draws(self.base(x[None]), key, draws):
            counts = torch.bincount(scores.argmax(1), minlength=scores.shape[1])
            total = counts if total is None else total + counts
        assert total is not None
        return total

    def base(self, x: Tensor) -> Tensor:
        """Returns h [n, *S], what the smoothing noise is added to."""
        if self.input_noise is not None:
            return x
        network = self.net.network
        with network.hooked():
            return network.run(x, _unchanged, None, 0, network.sites[0].block + 1)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss, keys: list[Key], draws: int) -> Tensor:
        """Returns an estimate of ∂E[loss]/∂x [n, C, H, W] by the likelihood ratio: (∂h/∂x)ᵀ E[L ε] / σ.

        Args:
            x: images.
            y: labels [n].
            loss: per-example loss of class scores.
            keys: the streams of each image.
            draws: draws per image.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            h = self.base(x)
        at = h.detach()
        delta = torch.stack([self._delta(at[i : i + 1], y[i : i + 1], loss, key, draws) for i, key in enumerate(keys)])
        (gradient,) = torch.autograd.grad(h, x, delta) if h is not x else (delta,)
        return gradient

    def _delta(self, h: Tensor, y: Tensor, loss: Loss, key: Key, draws: int) -> Tensor:
        """Returns δ [*S], the estimate of ∂E[loss]/∂h of one image, with the mean loss as baseline."""
        noise, losses = [], []
        for eps, scores in self._draws(h, key, draws):
            noise.append(eps)
            losses.append(loss(scores, y.expand(len(scores))))
        eps, values = torch.cat(noise), torch.cat(losses)
        weights = (values - values.mean()).view(-1, *[1] * (eps.dim() - 1))
        return (weights * eps).mean(0) / self._scale

    @property
    def _scale(self) -> Tensor | float:
        if self.input_noise is not None:
            return self.input_noise
        return self.net.scales()[self.net.network.sites[0].name]

    def _draws(self, h: Tensor, key: Key, draws: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (ε [tile, *S], class scores [tile, classes]) of the draws of one image, h [1, *S]."""
        network = self.net.network
        smoothed = None if self.input_noise is not None else network.sites[0]
        start = 0 if smoothed is None else smoothed.block + 1
        site = len(network.sites) if smoothed is None else smoothed.index  # noise on the input is one site more
        for tile, first in enumerate(range(0, draws, self.tile)):
            here = key._replace(shared_pass=tile)
            shape = (min(self.tile, draws - first), *h.shape[1:])
            eps = Gaussian().sample(shape, generator(here._replace(site=site), h.device), h.dtype)
            with torch.no_grad(), network.hooked():
                scores = self._scores(h + self._scale * eps, start, here)
            if scores.dim() != 2:
                raise SiteError(f"certificates are about one class per image; the outputs are {scores.dim()}-D")
            if not torch.isfinite(scores).all():
                raise FloatingPointError("the outputs of a noisy pass are not finite")
            yield eps, scores

    def _scores(self, h: Tensor, start: int, key: Key) -> Tensor:
        """Returns the mean scores of the passes from noisy h [tile, *S], the input of the block `start`."""
        net, network = self.net, self.net.network
        if net.noise is None:
            return network.run(h, _unchanged, None, start)
        scales, noise = net.scales(), net.noise
        streams: dict[str, torch.Generator] = {}

        def noisy(name: str, z: Tensor) -> Tensor:
            if name not in streams:
                streams[name] = generator(key._replace(site=network.by_name[name].index), z.device)
            return z + scales[name] * noise.sample(z.shape, streams[name], z.dtype)

        first = network.sites[0]
        z: Tensor | None = None
        common = first.top and start <= first.block < len(network.blocks) - 1
        if common and self.passes > 1:  # the passes have its logits in common
            start, z = first.block + 1, network.run(h, _unchanged, None, start, first.block + 1)

        def one() -> Tensor:
            return network.run(h if z is None else noisy(first.name, z), lambda name, _, z: noisy(name, z), None, start)

        total = one()
        for _ in range(1, self.passes):
            total = total + one()
        return total / self.passes


def _unchanged(name: str, inputs: Tensor, z: Tensor) -> Tensor:
    return z
