"""Networks as attacks see them: through autograd, or through the likelihood ratio gradient of the input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from glr_dist import config
from glr_dist.errors import NoGradientError
from glr_dist.execution.inline import Inline
from glr_dist.glr import GLR, scale_key
from glr_dist.losses import Loss, per_example
from glr_dist.noise import Gaussian
from glr_dist.streams import Key

_MOST_COPIES = 1024

Scores = Callable[[Tensor], Tensor]  # images [n, C, H, W] -> class scores [n, classes]


class WhiteBox:
    """Autograd through the network: the exact derivative, where there is one.

    Args:
        network: images -> class scores.
    """

    def __init__(self, network: Scores) -> None:
        self.network = network

    def scores(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)

    def slopes(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        return self.losses_and_slopes(x, y, loss)[1]

    def losses_and_slopes(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            losses = per_example(loss(self.network(x), y), len(x))
        slopes = None
        if losses.requires_grad:
            (slopes,) = torch.autograd.grad(losses, x, torch.ones_like(losses), allow_unused=True)
        if slopes is None:
            raise NoGradientError("no derivative reaches the input: a discontinuous activation lies on the way")
        return losses.detach(), slopes


class Averaged:
    """The mean scores of a network over noisy passes, of the same streams at each call: one function, not a new one.

    Args:
        net: the network with its noise, prepared.
        key: names the noise.
        draws: how many passes.

    Reference:
        Athalye, Carlini, Wagner: Obfuscated Gradients Give a False Sense of Security, ICML 2018 (expectation over
        transformation).
    """

    def __init__(self, net: GLR, key: Key, draws: int) -> None:
        self._net, self._key, self._draws = net, key, draws

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([self._net.noisy(x, self._key._replace(shared_pass=i)) for i in range(self._draws)]).mean(0)


class LikelihoodRatio:
    """The derivative of E[loss], noise at every site, by the input: estimated as training estimates its gradients.

    Units and losses without a derivative are attacked for real.

    Args:
        shifted: the network with its input as a parameter.
        network: how the network predicts (`scores`).
        seed: names the noise; each estimate draws anew.
    """

    def __init__(self, shifted: GLR, network: Scores, seed: int) -> None:
        self.network, self._shifted = network, shifted
        shifted.seed, shifted.step = seed, 0

    def scores(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)

    def slopes(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        gradients = self._shifted.gradients(x, y, loss).grads
        self._shifted.step += 1
        return gradients["0.r"][: len(x)] * len(x)  # the objective is a mean over the examples


def spreads(net: GLR, x: Tensor) -> dict[str, float]:
    """The standard deviation of each site's logits over all units and examples of x [n, C, H, W], without noise."""
    found: dict[str, float] = {}

    def visit(name: str, _: Tensor, z: Tensor) -> Tensor:
        found[name] = max(z.double().std(correction=0).item(), torch.finfo(z.dtype).eps)
        return z

    with torch.no_grad(), net.network.hooked():
        net.network.run(x, visit)
    return found


def shifted(
    net: GLR, examples: Tensor, scales: Mapping[str, Tensor | float], *, copies: int | None = None, passes: int = 1
) -> GLR:
    """A copy of the network, with Gaussian noise, whose only parameter is the shift r = 0 of its input, x + r.

    At the site that the input enters, δ is estimated by redraws (`conditional`), and carried to the input inside that
    one segment: ∂J/∂x = (∂z/∂x)ᵀ δ.

    Args:
        net: the network, prepared.
        examples: as many as the largest block has [n, C, H, W].
        scales: site -> σ of the noise, a scalar or one for each unit. It is the attacker's to choose: a threshold unit
            far from its step says nothing under narrow noise, as that which it may have been trained with.
        copies: K redraws; by default twice the units of the first site, at most 1024.
        passes: M shared passes of each estimate.

    Raises:
        SiteError: the input reaches the loss around the sites.
    """
    copies = copies or min(2 * net.network.sites[0].units, _MOST_COPIES)
    options = {"name": "conditional", "copies": copies, "passes": passes, "example_block": len(examples)}
    model = copy.deepcopy(net.model).eval().requires_grad_(False)
    found = GLR(
        nn.Sequential(_Shift(torch.zeros_like(examples)), model),
        Gaussian(),
        config.build(config.Estimator, options),
        sites=tuple({type(site.module) for site in net.network.sites}),
        site_names=[_inside(site.name) for site in net.network.sites],
        executor=Inline(1),
    )
    for site, scale in scales.items():
        log_scale = torch.as_tensor(scale, dtype=examples.dtype, device=examples.device).log()
        found.log_scales[scale_key(_inside(site))] = nn.Parameter(log_scale, requires_grad=False)
    found.prepare(examples)
    return found


class _Shift(nn.Module):
    """x + r, with r = 0 for each image of a block: the input as a parameter."""

    def __init__(self, r: Tensor) -> None:
        super().__init__()
        self.r = nn.Parameter(r)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.r[: len(x)]


def _inside(site: str) -> str:
    """The name of a site when its network is the second link of a chain."""
    return f"1.{site}" if site else "1"
