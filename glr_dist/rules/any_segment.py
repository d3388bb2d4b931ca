"""The rule for any segment: one vector-Jacobian product inside it, never a chain through segments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glr_dist.network import Network, Uniforms
from glr_dist.sites import Site, Tape


def any_segment(
    network: Network,
    site: Site,
    tape: Tape,
    delta: Tensor,
    noisy: Callable[[Site, Tensor], Tensor],
    uniforms: Uniforms | None = None,
) -> dict[str, Tensor]:
    """Returns (∂z/∂θ)ᵀ δ for every parameter θ that the site owns, by name.

    The segment runs again from the tape with autograd. The noisy logits of other sites in its blocks are held constant,
    so that a parameter's gradient comes only from the site that it reaches first.

    Args:
        delta: δ [N, *S] of `site`.
        noisy: (site, z) -> v for the other sites, as in the pass that made the tape.
    """
    found: list[Tensor] = []

    def visit(name: str, x: Tensor, z: Tensor) -> Tensor:
        if name != site.name:
            return noisy(network.by_name[name], z.detach())
        found.append(z)
        return z.detach()

    with torch.enable_grad():
        network.run(tape.starts[site.start], visit, uniforms, site.start, site.block + 1, statistics=tape.statistics)
        parameters = [network.parameters[name] for name in site.owned]
        grads = torch.autograd.grad(found[0], parameters, delta)
    # Autograd may return one tensor for two parameters.
    separate = (grad.to_dense() if grad.is_sparse else grad.clone() for grad in grads)
    return dict(zip(site.owned, separate, strict=True))
