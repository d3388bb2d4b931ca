"""The network with a shift of its input as its only parameter: likelihood ratio estimates of ∂J/∂x.

Shapes: n examples, images x [n, C, H, W].
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glr_dist.config import Estimator, build
from glr_dist.execution.inline import Inline
from glr_dist.glr import GLR, scale_key
from glr_dist.noise import Gaussian

_MAX_COPIES = 1024


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
    net: GLR,
    examples: Tensor,
    scales: Mapping[str, Tensor | float],
    *,
    copies: int | None = None,
    passes: int = 1,
    head: str = "sampled",
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
        head: how the noise of the last site enters, as `estimator.head`.

    Raises:
        SiteError: the input reaches the loss without passing a site.
    """
    copies = copies or min(2 * net.network.sites[0].units, _MAX_COPIES)
    options = {"name": "conditional", "copies": copies, "passes": passes, "example_block": len(examples), "head": head}
    model = copy.deepcopy(net.model).eval().requires_grad_(False)
    attacked = GLR(
        nn.Sequential(_Shift(torch.zeros_like(examples)), model),
        Gaussian(),
        build(Estimator, options),
        sites=tuple({type(site.module) for site in net.network.sites}),
        site_names=[_nested_name(site.name) for site in net.network.sites],
        executor=Inline(1),
        verify=net.verify,
        output=net.network.output,
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
