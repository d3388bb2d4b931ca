"""A small vision transformer, whose attention is made of linear sites.

Shapes: images [N, C, H, W] in L patches of P x P pixels; tokens [N, L, E].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glr_dist.errors import ConfigError
from glr_dist.nn.arguments import check_counts, check_image
from glr_dist.nn.attention import Attention
from glr_dist.nn.builder import configured
from glr_dist.nn.initial import initialised
from glr_dist.nn.same_state import Ties


class Patches(nn.Module):
    """Cuts images [N, C, H, W] into patches beside a one-hot code of their positions, [N, L, C·P² + L].

    With the code as input, the weights of the patch embedding hold the position embedding too: one site serves both.
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        length = patches.shape[1]
        positions = torch.eye(length, dtype=x.dtype, device=x.device).expand(x.shape[0], length, length)
        return torch.cat((patches, positions), 2)

    def extra_repr(self) -> str:
        return f"patch={self.patch}"


class SelfAttention(nn.Module):
    """x + Attention(LayerNorm(x)) of tokens [N, L, E]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(nn.MultiheadAttention(width, heads, batch_first=True), "attention", Ties())
        for name, module in self.attention.named_children():
            if isinstance(module, nn.Linear):
                setattr(self.attention, name, nn.Linear(module.in_features, module.out_features))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        mixed: Tensor = self.attention(h, h, h, need_weights=False)[0]
        return x + mixed


class FeedForward(nn.Module):
    """x + W₂ gelu(W₁ LayerNorm(x)) of tokens [N, L, E]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.layers(x)
        return x + added


class Mean(nn.Module):
    """Mean of tokens [N, L, E] over their positions, [N, E]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit(
    shape: Sequence[int],
    classes: int,
    *,
    patch: int = 7,
    width: int = 32,
    depth: int = 2,
    heads: int = 4,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a vision transformer, [N, C, H, W] -> [N, classes].

    The class scores are a linear function of the mean token. Attention and the two layers behind it are one block of
    the chain each.

    Args:
        shape: shape (C, H, W) of an image; H and W are multiples of `patch`.
        classes: number of outputs.
        patch: P, side of a patch in pixels.
        width: E, a multiple of `heads`.
        depth: number of pairs of attention and feed-forward blocks.
        heads: number of attention heads.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        Dosovitskiy et al., An Image Is Worth 16x16 Words, ICLR 2021.
    """
    check_counts("vit", patch=patch, width=width, depth=depth, heads=heads)
    channels, height, pixels = check_image("vit", shape)
    if height % patch or pixels % patch:
        raise ConfigError(f"vit: patch {patch} is not allowed: a divisor of the sides {height} and {pixels}")
    if width % heads:
        raise ConfigError(f"vit: heads {heads} is not allowed: a divisor of width {width}")
    length = (height // patch) * (pixels // patch)

    def build() -> nn.Sequential:
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks += [SelfAttention(width, heads), FeedForward(width, 2 * width)]
        embedding = nn.Linear(channels * patch**2 + length, width)
        return nn.Sequential(Patches(patch), embedding, *blocks, nn.LayerNorm(width), Mean(), nn.Linear(width, classes))

    return initialised(build, generator)


build_vit = configured(vit)
