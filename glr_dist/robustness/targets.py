"""Networks as attacks see them: through autograd, or through the likelihood ratio gradient of the input."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from glr_dist import config
from glr_dist.errors import NoGradientError
from glr_dist.execution.inline import Inline
from glr_dist.glr import GLR, scale_key
from glr_dist.losses import Loss, per_example

Scores = Callable[[Tensor], Tensor]  # images [n, C, H, W] -> class scores [n, classes]


class WhiteBox:
    """Autograd through the network: the exact derivative, where there is one.

    Args:
        network: images -> class scores.
        draws: calls that losses and derivatives are averaged over, for a network that draws noise at each call
            (expectation over transformation: Athalye et al., ICML 2018).
    """

    def __init__(self, network: Scores, draws: int = 1) -> None:
        self.network, self.draws = network, draws

    def scores(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)

    def slopes(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        return self.losses_and_slopes(x, y, loss)[1]

    def losses_and_slopes(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            draws = [per_example(loss(self.network(x), y), len(x)) for _ in range(self.draws)]
            losses = torch.stack(draws).mean(0)
        slopes = None
        if losses.requires_grad:
            (slopes,) = torch.autograd.grad(losses, x, torch.ones_like(losses), allow_unused=True)
        if slopes is None:
            raise NoGradientError("no derivative reaches the input: a discontinuous activation lies on the way")
        return losses.detach(), slopes


class LikelihoodRatio:
    """The derivative of J = E[loss], noise at every site, by the input: estimated as training estimates its gradients.

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
        return gradients["0.r"][: len(x)] * len(x)  # J is a mean over the examples


def shifted(net: GLR, examples: Tensor, *, copies: int, passes: int, widening: float) -> GLR:
    """A copy of the network whose only parameter is the shift r = 0 of its input, x + r.

    At the site that the input enters, δ is estimated by redraws (`conditional`), and carried to the input inside that
    one segment: ∂J/∂x = (∂z/∂x)ᵀ δ.

    Args:
        net: the network with its noise, prepared.
        examples: as many as the largest block has [n, C, H, W].
        copies, passes: K redraws, M shared passes of each estimate.
        widening: factor on the scales of the noise. A threshold unit far from its step says nothing under the noise
            that it was trained with; wider noise reaches the step, and attacks far better.

    Raises:
        SiteError: the input reaches the loss around the sites.
    """
    assert net.noise is not None
    options = {"name": "conditional", "copies": copies, "passes": passes, "example_block": len(examples)}
    model = copy.deepcopy(net.model).eval().requires_grad_(False)
    found = GLR(
        nn.Sequential(_Shift(torch.zeros_like(examples)), model),
        type(net.noise)(),
        config.build(config.Estimator, options),
        sites=tuple({type(site.module) for site in net.network.sites}),
        site_names=[_inside(site.name) for site in net.network.sites],
        executor=Inline(1),
    )
    for site, scale in net.scales().items():
        found.log_scales[scale_key(_inside(site))] = nn.Parameter((scale * widening).log(), requires_grad=False)
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
