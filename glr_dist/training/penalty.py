"""A penalty on the spectral norms of layers, λ ‖W‖₂, with a gradient that is local to each layer.

Shapes: W [O, …], taken as the matrix [O, I].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glr_dist.config import Penalty
from glr_dist.errors import ConfigError
from glr_dist.network import Network
from glr_dist.sites import matches
from glr_dist.text import hint, shown


def spectral_norm(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ‖W‖₂ and its gradient u vᵀ, with u and v the first singular vectors; 0 and 0 for W = 0.

    They come from the eigenvalues of the smaller of WᵀW and WWᵀ in float64. Unlike a power iteration, this needs no
    state, so a resumed run gives the same bits. Where the largest singular value is not unique, this is a subgradient.

    Args:
        weight: W [O, …].

    Returns:
        The norm, a scalar, and its gradient [O, …] in the type of W.

    Reference:
        Yoshida, Miyato: Spectral Norm Regularization for Improving the Generalizability of Deep Learning, 2017.
    """
    w = weight.detach().flatten(1).double()
    wide = w if w.shape[0] <= w.shape[1] else w.T
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    norm = values[-1].clamp(min=0).sqrt()
    u = vectors[:, -1:]
    gradient = u @ (u.T @ wide) / norm.clamp(min=torch.finfo(torch.float64).tiny)
    gradient = gradient if wide is w else gradient.T
    return norm, gradient.reshape(weight.shape).to(weight.dtype)


@dataclass(frozen=True)
class SpectralPenalty:
    """λ ‖W‖₂ of some layers.

    Attributes:
        weights: layer -> (its weight, λ).
    """

    weights: Mapping[str, tuple[nn.Parameter, float]]

    @classmethod
    def of(cls, penalty: Penalty, network: Network) -> SpectralPenalty:
        """Returns the penalty of a prepared network.

        Raises:
            ConfigError: the first layer has no weight to train, or a pattern matches no layer that has one.
        """
        layers: dict[str, nn.Parameter] = {}
        for site in network.sites:
            name = next(name for name, module in network.candidates.items() if module is site.module)
            weight = getattr(site.module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.requires_grad and weight.dim() >= 2:
                layers[name] = weight
        if not isinstance(penalty.spectral, Mapping):
            first = network.sites[0].name if network.sites else ""
            known = [name for name in layers if matches(first, name)]
            if not known:
                raise ConfigError(
                    f"training.penalty.spectral: the first layer {shown(first)} has no weight matrix to train; give a "
                    "mapping of patterns of layer names"
                )
            return cls({known[0]: (layers[known[0]], penalty.spectral)})
        found: dict[str, tuple[nn.Parameter, float]] = {}
        for pattern, factor in penalty.spectral.items():
            named = [name for name in layers if matches(name, pattern)]
            if not named:
                raise ConfigError(
                    f"training.penalty.spectral: {shown(pattern)} matches no layer with a weight matrix to train; "
                    f"{hint(pattern, layers)}"
                )
            for name in named:
                found.setdefault(name, (layers[name], factor))  # the first pattern decides
        return cls(found)

    def add_gradients(self) -> None:
        """Adds the gradient of the penalty to `.grad` of the weights."""
        for weight, factor in self.weights.values():
            gradient = factor * spectral_norm(weight)[1]
            weight.grad = gradient if weight.grad is None else weight.grad + gradient

    def norms(self) -> dict[str, float]:
        """Returns ‖W‖₂ by layer."""
        return {name: spectral_norm(weight)[0].item() for name, (weight, _) in self.weights.items()}
