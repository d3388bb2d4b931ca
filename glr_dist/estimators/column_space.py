"""Redraws inside the column space of a layer's input, for sites with many more logits than parameters.

A convolution, or a Linear over tokens, has the parameter gradient ∂J/∂W = Σ_n δ_nᵀ P_n, where the columns of P_n [L, r]
are the input's values at the L positions (for a convolution: its patches; a bias adds a column of ones). So δ matters
only through its component in the column space of P. With an orthonormal basis Q [L, r] of it, each channel's noise is

    ε' = Q c + (I - Q Qᵀ) ε,   c ~ N(0, I_r)

where ε is the noise of the shared pass. Under the Gaussian law the two terms are independent and ε' is N(0, I), so that
Q E[L c] / σ is unbiased for the component of ∂J/∂z in the space, given the shared pass. Only c is redrawn: r numbers
for each channel instead of L.

Q comes from a Householder QR of P: its columns are orthonormal and span those of P even where these are dependent, as
for a blank image. Q then spans a few directions more, which cost some variance and no bias.

Shapes: n examples, G groups of C channels each, L positions, R directions, *S the shape of the site's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_dist.errors import SiteError
from glr_dist.sites import Site

_WORTH = 4  # `auto` wants at least this many positions for each column: a QR costs 4 L r² FLOPs for each example
_QR = 40  # L r² of an example's QR, in FLOPs of a large product


class ColumnSpace(NamedTuple):
    """Sizes of the column spaces at a site, from shapes alone.

    Attributes:
        groups: G; each group has columns of its own.
        channels: C, channels of a group.
        positions: L.
        rank: r, number of columns, at most L.
        weight, bias: True for those that are trained.
        last: True if the channels are the last dimension of the logits, False if they are the first.
    """

    groups: int
    channels: int
    positions: int
    rank: int
    weight: bool
    bias: bool
    last: bool

    @property
    def units(self) -> int:
        """Number of coefficients c that a redraw draws for an example, over all channels."""
        return self.groups * self.channels * self.rank

    @property
    def narrow(self) -> bool:
        """True if a redraw varies fewer dimensions than the site has logits."""
        return self.rank < self.positions

    @property
    def worthwhile(self) -> bool:
        """True if they are so few that the bases pay."""
        return _WORTH * self.rank <= self.positions

    @property
    def basis_flops(self) -> float:
        """FLOPs of an example's bases."""
        return float(_QR * self.groups * self.positions * self.rank**2)

    @property
    def expand_flops(self) -> float:
        """FLOPs of a direction's noise from its coefficients, for one example."""
        return 2.0 * self.units * self.positions

    def basis(self, module: nn.Module, x: Tensor) -> Tensor:
        """Returns orthonormal bases Q [n, G, L, r] of the column spaces at inputs x of the layer."""
        exact = x if x.dtype in (torch.float32, torch.float64) else x.float()  # QR has no half precision
        columns = _columns(module, exact) if self.weight else exact.new_empty(len(x), self.groups, self.positions, 0)
        if self.bias:
            columns = torch.cat([columns, columns.new_ones(*columns.shape[:-1], 1)], -1)
        basis: Tensor = torch.linalg.qr(columns).Q
        return basis.to(x.dtype).contiguous()

    def expand(self, basis: Tensor, coefficients: Tensor, site: Site) -> Tensor:
        """Returns Q c [R, n, *S] of coefficients c [R, n, G·C·r]."""
        directions, n = coefficients.shape[:2]
        c = coefficients.view(directions, n * self.groups, self.channels, self.rank).transpose(0, 1)
        rows = c.reshape(n * self.groups, directions * self.channels, self.rank)
        found = rows @ basis.view(n * self.groups, self.positions, self.rank).mT
        split = found.view(n, self.groups, directions, self.channels, self.positions)
        order = (2, 0, 4, 1, 3) if self.last else (2, 0, 1, 3, 4)
        return split.permute(order).reshape(directions, n, *site.shape).contiguous()

    def inside(self, basis: Tensor, eps: Tensor) -> Tensor:
        """Returns the coefficients Qᵀ ε [1, n, G·C·r] of noise ε [n, *S]."""
        n = len(eps)
        if self.last:
            eps = eps.reshape(n, self.positions, self.channels).mT
        rows = eps.reshape(n * self.groups, self.channels, self.positions)
        return (rows @ basis.view(n * self.groups, self.positions, self.rank)).view(1, n, self.units)


def column_space(site: Site, trained: Collection[str] | None) -> ColumnSpace:
    """Returns the sizes of the column spaces at a site.

    Args:
        site: the site.
        trained: attributes of the layer that its rule gives a gradient, or None if it does not have a rule.

    Raises:
        SiteError: the site's parameters do not get their gradients from a rule for Linear or Conv2d.
    """
    module = site.module
    if trained is None or type(module) not in _SIZES:
        raise SiteError(
            f"estimator.redraw: 'column_space' at '{site.name}' needs a Linear or Conv2d whose own parameters alone "
            "the segment trains, with padding by zeros or none; use 'copies' there, or 'auto'"
        )
    groups, channels, positions, width, last = _SIZES[type(module)](module, site)
    weight, bias = "weight" in trained, "bias" in trained
    columns = width * weight + bias
    return ColumnSpace(groups, channels, positions, min(columns, positions), weight, bias, last)


def narrow_space(site: Site, trained: Collection[str] | None) -> ColumnSpace:
    """Returns the sizes of the column spaces at a site, if a redraw varies fewer dimensions than it has logits.

    Raises:
        SiteError: a redraw varies as many dimensions, or the site has no column space.
    """
    space = column_space(site, trained)
    if not space.narrow:
        raise SiteError(
            f"estimator.redraw: 'column_space' at '{site.name}' leaves nothing out: each channel has {space.positions} "
            f"logits, and the columns span {space.rank} dimensions; use 'copies' or 'auto' there"
        )
    return space


def worthwhile_space(site: Site, trained: Collection[str] | None) -> ColumnSpace | None:
    """Returns the sizes of the column spaces at a site if redraws inside them pay, else None; from shapes alone."""
    if trained is None or type(site.module) not in _SIZES:
        return None
    space = column_space(site, trained)
    return space if space.worthwhile else None


# ---------------------------------------------------------------- the layers

_Sizes = tuple[int, int, int, int, bool]


def _linear_sizes(module: nn.Module, site: Site) -> _Sizes:
    assert isinstance(module, nn.Linear)
    return 1, module.out_features, site.shape[:-1].numel(), module.in_features, True


def _conv2d_sizes(module: nn.Module, site: Site) -> _Sizes:
    assert isinstance(module, nn.Conv2d)
    groups = module.groups
    return groups, module.out_channels // groups, site.shape[1:].numel(), module.weight[0].numel(), False


_SIZES: dict[type[nn.Module], Callable[[nn.Module, Site], _Sizes]] = {
    nn.Linear: _linear_sizes,
    nn.Conv2d: _conv2d_sizes,
}


def _columns(module: nn.Module, x: Tensor) -> Tensor:
    """Returns the columns of the weight [n, G, L, r]: the inputs of a Linear, or the patches of a convolution."""
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), 1, -1, module.in_features)
    assert isinstance(module, nn.Conv2d)
    padding = 0 if module.padding == "valid" else module.padding
    assert not isinstance(padding, str)
    patches = functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
    return patches.view(len(x), module.groups, -1, patches.shape[-1]).mT
