"""Upper bounds of the spectral norm of linear maps, in float64 with a margin for rounding.

Shapes: matrix [O, I]; kernel [O, C/groups, kh, kw] of a 2-D convolution of images [C, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_UNIT = torch.finfo(torch.float64).eps


def matrix_norm(matrix: Tensor) -> float:
    """Returns an upper bound of ‖A‖₂ that exceeds it by rounding only.

    ‖A‖₂² is the largest eigenvalue of the smaller of AᵀA and AAᵀ, computed in float64. The error of the products and of
    the eigenvalue is below |A|_F² times the number of terms times the unit of rounding, which is added.
    """
    a = matrix.detach().double()
    if a.shape[0] > a.shape[1]:
        a = a.T
    if not a.numel():
        return 0.0
    largest = torch.linalg.eigvalsh(a @ a.T)[-1].clamp(min=0)
    margin = 4 * (sum(a.shape) + 10) * _UNIT * (a * a).sum()
    return float((largest + margin).sqrt()) * (1 + 4 * _UNIT)


def convolution_norm(module: nn.Conv2d, height: int, width: int) -> float:
    """Returns an upper bound of the spectral norm of a zero-padded convolution of images [C, height, width].

    The convolution is a part of the circular one on the padded image: stride and padding only leave out rows and
    columns of its matrix. The Fourier transform makes the circular one block diagonal, so its norm is
    max_ω ‖Σ_ab K[:, :, a, b] e^{iω·(a, b)}‖₂.

    Raises:
        ValueError: the padding is not zeros of a fixed size.

    Reference:
        Sedghi, Gupta, Long: The Singular Values of Convolutional Layers, ICLR 2019.
    """
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode {module.padding_mode!r} is not allowed: 'zeros'")
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if isinstance(module.padding, str):
        added = [0, 0] if module.padding == "valid" else reach
    else:
        added = [2 * p for p in module.padding]
    size = [length + more for length, more in zip((height, width), added, strict=True)]
    kernel = module.weight.detach().double()
    groups = module.groups
    spread = kernel.new_zeros(*kernel.shape[:2], *(max(s, r + 1) for s, r in zip(size, reach, strict=True)))
    spread[:, :, : reach[0] + 1 : module.dilation[0], : reach[1] + 1 : module.dilation[1]] = kernel
    largest = 0.0
    for group in spread.view(groups, -1, *spread.shape[1:]):
        blocks = torch.fft.fft2(group).permute(2, 3, 0, 1).flatten(0, 1)  # one matrix [O/groups, C/groups] per ω
        largest = max(largest, torch.linalg.matrix_norm(blocks, 2).max().item())
    error: float = 100 * _UNIT * spread[0, 0].numel() ** 0.5 * kernel.norm().item()  # of the transforms, generously
    return largest * (1 + 1e-10) + error
