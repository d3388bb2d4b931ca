"""Noise on the weights of a layer instead of its logits: every example of a pass has weights of its own.

    v = θ + σ ε  [n, P],    output_n = layer(x_n; v_n)

The weights are the logits of a site, the same z = θ for all examples, so every estimator, law and option for sites
applies to them, and δ_n = (1/σ) E[L s(ε_n)] is example n's share of ∂J/∂θ. J is another objective than with noise on
the layer's outputs: the expected loss under perturbed weights. A convolution has far fewer weights than outputs, so
few redraws span them.

Shapes: n examples, x [n, …, I] or [n, C, H, W], P = number of weights and biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_dist.errors import SiteError
from glr_dist.nn.opening import copied, plain, replaced
from glr_dist.text import hint


class Weights(nn.Module):
    """The parameters of a layer as logits of a site, [n, P]: the same for all examples, until noise is added."""

    def forward(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Returns the flattened parameters for each example of x [n, …]."""
        flat = torch.cat([parameter.flatten() for parameter in parameters])
        return flat.expand(len(x), len(flat))


class NoisyWeights(nn.Module):
    """A Linear or Conv2d whose weights and biases are the logits of a site, its child `weights`.

    Without noise it computes what the layer does. It keeps the layer's names of parameters.

    Args:
        layer: an `nn.Linear`, or an `nn.Conv2d` that pads by zeros; its parameters become those of this module.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.weights = Weights()
        self._convolution: dict[str, Any] | None = None
        if isinstance(layer, nn.Conv2d):
            self._convolution = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
        self._shown = layer.extra_repr()
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's outputs, each example's with its own weights."""
        if not self.weights._forward_hooks:  # outside of passes with noise
            return self._alike(x, self.weight, self.bias)
        v = self.weights(x, *([self.weight] if self.bias is None else [self.weight, self.bias]))
        if v.stride(0) == 0 or len(v) == 1:  # nothing was added, or there is one example
            return self._alike(x, *self._split(v[0]))
        if self._convolution is None:
            return _linear(x, *self._split(v))
        return _conv2d(x, *self._split(v), **self._convolution)

    def _alike(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the outputs if all examples have the same weights."""
        if self._convolution is None:
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, **self._convolution)

    def _split(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the weights [*n, *W] and biases [*n, O] that v [*n, P] holds."""
        number = self.weight.numel()
        weight = v[..., :number].reshape(*v.shape[:-1], *self.weight.shape)
        return weight, None if self.bias is None else v[..., number:]

    def extra_repr(self) -> str:
        """Returns the description of the layer."""
        return self._shown


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x_n W_nᵀ + b_n [n, …, O] of weights [n, O, I]."""
    rows = x.reshape(len(x), -1, x.shape[-1])
    products = rows @ weight.mT if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)
    return products.view(*x.shape[:-1], -1)


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: tuple[int, ...] | str, groups: int, **options: Any
) -> Tensor:
    """Returns the convolutions [n, O, H', W'] of images x_n with kernels W_n, weight [n, O, C/groups, kh, kw]."""
    n, outputs = weight.shape[:2]
    images, kernels = x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1)  # each example is a group of channels
    biases = None if bias is None else bias.flatten()
    found = functional.conv2d(images, kernels, biases, padding=padding, groups=n * groups, **options)
    return found.view(n, outputs, *found.shape[2:])


def noisy_weights(model: nn.Module, names: Sequence[str] = ("*",), *, what: str = "noisy_weights") -> nn.Module:
    """Returns a copy of a model in which layers have noise on their weights and biases instead of their outputs.

    The layer `conv` has the site `conv.weights`, whose σ is in units of the weights. Outputs without noise, and the
    keys and values of the state dict, stay the same.

    Args:
        model: any module; it is not changed.
        names: patterns of the names of `nn.Linear` and `nn.Conv2d` layers.
        what: begins an error about a pattern.

    Raises:
        SiteError: a pattern matches no such layer, or one with a forward pass of its own, hooks, parametrizations, or
            padding by something else than zeros.

    Example:
        >>> model = noisy_weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 2)), ["0"])
        >>> model(torch.ones(5, 1, 6, 6)).shape
        torch.Size([5, 2])
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise SiteError(f"{what}: the pattern '{pattern}' matches no Linear or Conv2d; {hint(pattern, layers)}")

    def replace(name: str, module: nn.Module) -> nn.Module:
        if not any(fnmatchcase(name, pattern) for pattern in names):
            return module
        if isinstance(module, nn.Linear) and plain(name, module, nn.Linear):
            return NoisyWeights(module)
        if isinstance(module, nn.Conv2d) and plain(name, module, nn.Conv2d):
            if module.padding_mode != "zeros":
                raise SiteError(
                    f"{what}: '{name}' has the padding_mode {module.padding_mode!r}, not 'zeros'; leave it out"
                )
            return NoisyWeights(module)
        return module

    return replaced(copied(model), replace)
