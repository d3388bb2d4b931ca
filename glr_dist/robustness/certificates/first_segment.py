"""The first segment of a network as an affine map z = A x + b, and the norm that turns its noise into a radius.

Shapes: n images x [n, C, H, W], z [n, *S] the logits of the first site before noise.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from glr_dist.errors import SiteError
from glr_dist.glr import GLR
from glr_dist.network import Network
from glr_dist.noise import Gaussian
from glr_dist.robustness.certificates.norms import convolution_norm, matrix_norm
from glr_dist.sites import Site
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import taken

_LARGEST = 2**24  # elements of a matrix that is computed as a whole
_SPREADS = (0.1, 1.0, 100.0)  # standard deviations of the points at which a block is tested
_TOLERANCE = 1e-9  # relative deviation of an affine map in float64
_LEAST = 1e-9  # of a bound, so that radii are finite
_ROWS = 256  # columns of a matrix that are computed at a time

Map = Callable[[Tensor], Tensor]


def check_smoothable(net: GLR) -> Site:
    """Returns the first site of a network, whose noise smooths it.

    Raises:
        SiteError: the input passes the site, or its noise is not Gaussian.
    """
    if net.noise is None:
        raise SiteError("the network has no noise: give it noise on the input, as in input_noise=0.25")
    site = net.network.sites[0]
    if type(net.noise) is not Gaussian:
        raise SiteError(
            f"the noise at '{site.name}' is {net.noise.law}, and the certificate is about Gaussian noise: use "
            "input_noise=0.25, or train with noise.law=gaussian"
        )
    if not site.top:
        block = net.network.blocks[site.block].name or type(net.model).__name__
        raise SiteError(
            f"the first site '{site.name}' lies inside '{block}', where the input may pass it: use input_noise=0.25"
        )
    return site


def lipschitz_bound(net: GLR, x: Tensor) -> float:
    """Returns an upper bound of ‖diag(1/σ) A‖₂, how many standard deviations of the noise a unit of distance is.

    Everything behind the first site depends on the input through its logits alone, because the site is a block of the
    chain. That the blocks before it are affine is tested in float64, at these images and far from them.

    Args:
        net: the network, in evaluation mode, prepared.
        x: a few images [n, C, H, W].

    Raises:
        SiteError: the first segment is not affine, or too large for the bounds that are known; names the module.
    """
    site = check_smoothable(net)
    scale = net.scales()[site.name].double()
    exact = copy.deepcopy(net).double().eval()
    x = x.double()
    with torch.no_grad(), exact.network.hooked():
        exact.prepare(taken(x, slice(2)))
        network = exact.network
        h = x
        values = [h]
        for index in range(site.block + 1):
            values.append(_checked(network, index, h))
            h = values[-1]
        units, inputs = h[0].numel(), x[0].numel()
        if units * inputs <= _LARGEST:
            whole = _matrix(_blocks(network, 0, site.block + 1), x[:1])
            return max(_LEAST, matrix_norm(whole / scale.expand(site.shape).reshape(-1, 1)))
        bound = 1 / float(scale.min())
        for index, (before, after) in enumerate(itertools.pairwise(values)):
            bound *= _block_norm(network, index, before, after)
    return max(_LEAST, bound)


def _blocks(network: Network, start: int, stop: int) -> Map:
    """Returns a part of the chain as a function; the logits of a site stay as they are."""
    return lambda h: network.run(h, lambda name, inputs, z: z, None, start, stop)


def _checked(network: Network, index: int, h: Tensor) -> Tensor:
    """Returns the value after a block, which is tested to be affine: f(a + b - c) = f(a) + f(b) - f(c)."""
    f, name = _blocks(network, index, index + 1), network.blocks[index].name
    value = f(h)
    if not isinstance(value, Tensor) or value.dtype != torch.float64:
        raise SiteError(f"the module '{name}' before the first site does not compute in its input's type")
    stream = generator(Key(0, step=index, role=Role.CERTIFICATE))
    draws = torch.randn((2, *h.shape), generator=stream, dtype=torch.float64).to(h.device)
    for spread in _SPREADS:
        a, b, c = h, h + spread * draws[0], spread * draws[1]
        left, parts = f(a + b - c), (f(a), f(b), f(c))
        deviation = (left - (parts[0] + parts[1] - parts[2])).abs().max()
        size = torch.stack([part.abs().max() for part in (left, *parts)]).max()
        if not deviation <= _TOLERANCE * size:
            raise SiteError(
                f"the module '{name}' ({type(network.blocks[index].module).__name__}) before the noise of the first "
                "site is not affine, so a bound of its slope is not known: use input_noise=0.25"
            )
    return value


def _matrix(f: Map, like: Tensor) -> Tensor:
    """Returns the matrix [O, I] of an affine map, column by column: f(e_i) - f(0)."""
    size = like[0].numel()
    zero = f(torch.zeros_like(like)).flatten(1)
    columns = []
    for first in range(0, size, _ROWS):
        count = min(_ROWS, size - first)
        basis = like.new_zeros(count, size)
        basis[torch.arange(count), first + torch.arange(count)] = 1
        columns.append((f(basis.view(count, *like.shape[1:])).flatten(1) - zero).T)
    return torch.cat(columns, 1)


def _block_norm(network: Network, index: int, before: Tensor, after: Tensor) -> float:
    """Returns an upper bound of the spectral norm of one block's linear part."""
    name, module = network.blocks[index]
    if type(module) in (nn.Flatten, nn.Identity, nn.Unflatten):
        return 1.0
    if type(module) is nn.Linear:
        return matrix_norm(module.weight)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        return convolution_norm(module, *before.shape[-2:])
    if before[0].numel() * after[0].numel() <= _LARGEST:
        return matrix_norm(_matrix(_blocks(network, index, index + 1), before[:1]))
    raise SiteError(
        f"no bound of the norm of '{name}' ({type(module).__name__}) is known for inputs of {before[0].numel():,} "
        "values: use input_noise=0.25"
    )
