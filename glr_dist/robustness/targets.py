"""Networks as attacks see them: input gradients by autograd or by the likelihood ratio method.

Shapes: n examples, images x [n, C, H, W], labels y [n], class scores [n, classes].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from glr_dist.config import Estimator, build
from glr_dist.errors import NoGradientError
from glr_dist.execution.inline import Inline
from glr_dist.glr import GLR, scale_key
from glr_dist.losses import Loss, per_example
from glr_dist.noise import Gaussian
from glr_dist.streams import Key

_MAX_COPIES = 1024

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
        shifted: the network with its input as a parameter (see `shifted`).
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


def spreads(net: GLR, x: Tensor) -> dict[str, float]:
    """Returns the standard deviation of each site's noise-free logits over all units and all examples of x."""
    stds: dict[str, float] = {}

    def visit(name: str, _: Tensor, z: Tensor) -> Tensor:
        stds[name] = max(z.double().std(correction=0).item(), torch.finfo(z.dtype).eps)
        return z

    with torch.no_grad(), net.network.hooked():
        net.network.run(x, visit)
    return stds


def shifted(
    net: GLR, examples: Tensor, scales: Mapping[str, Tensor | float], *, copies: int | None = None, passes: int = 1
) -> GLR:
    """Returns a copy of the network with Gaussian noise whose only parameter is the shift r = 0 of its input, x + r.

    At the first site, the `conditional` estimator gives δ = ∂J/∂z; the chain rule within this one segment gives the
    input gradient ∂J/∂x = (∂z/∂x)ᵀ δ.

    Args:
        net: the network, prepared.
        examples: images of the largest block [n, C, H, W]; only their number, shape and type matter.
        scales: site -> σ of the noise, a scalar or one per unit. Chosen by the attacker: under noise as narrow as in
            training, a unit far from its threshold yields no gradient signal.
        copies: K redraws; default: twice the number of units of the first site, at most 1024.
        passes: M shared passes per estimate.

    Raises:
        SiteError: the input reaches the loss without passing a site.
    """
    copies = copies or min(2 * net.network.sites[0].units, _MAX_COPIES)
    options = {"name": "conditional", "copies": copies, "passes": passes, "example_block": len(examples)}
    model = copy.deepcopy(net.model).eval().requires_grad_(False)
    attacked = GLR(
        nn.Sequential(_Shift(torch.zeros_like(examples)), model),
        Gaussian(),
        build(Estimator, options),
        sites=tuple({type(site.module) for site in net.network.sites}),
        site_names=[_nested_name(site.name) for site in net.network.sites],
        executor=Inline(1),
        verify=net.verify,
    )
    attacked.prepare(examples)
    for site, scale in scales.items():  # possibly one per unit, though none is learned
        log_scale = torch.as_tensor(scale, dtype=examples.dtype, device=examples.device).log()
        attacked.log_scales[scale_key(_nested_name(site))] = nn.Parameter(log_scale, requires_grad=False)
    return attacked


class _Shift(nn.Module):
    """Computes x + r with a parameter r = 0 for each image of a block."""

    def __init__(self, r: Tensor) -> None:
        super().__init__()
        self.r = nn.Parameter(r)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.r[: len(x)]


def _nested_name(site: str) -> str:
    """Returns the name of a site in a network that is the second member of an `nn.Sequential`."""
    return f"1.{site}" if site else "1"
