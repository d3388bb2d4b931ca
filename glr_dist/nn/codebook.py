"""A vector-quantised bottleneck: a part of the hidden layer passes as the nearest of M codes, and nothing else does.

The negative squared distances to the codes are the logits of a site, and the code with the greatest noisy one is
chosen. So the choice, which jumps, depends on parameters only through these logits, and all gradients are right: that
of the layers before by the noise at their sites, that of the codes by the noise at the distances and, for the chosen
code, by the local derivative behind it. No straight-through gradient, commitment loss or moving average is needed.

Shapes: N examples, G groups of d units, M codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glr_dist.nn.arguments import check_counts
from glr_dist.nn.builder import configured
from glr_dist.nn.initial import initialised
from glr_dist.registry import ACTIVATIONS


class Distances(nn.Linear):
    """-|z - c_m|² / 2 of vectors z [N, G, d] and codes c [M, d], [N, G, M]. A site, since it is an `nn.Linear`.

    Args:
        size: d.
        codes: M.
    """

    def __init__(self, size: int, codes: int) -> None:
        super().__init__(size, codes, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        squares = input.square().sum(-1, keepdim=True) + self.weight.square().sum(1)
        return F.linear(input, self.weight) - squares / 2

    def draw(self, generator: torch.Generator | None) -> None:
        """Draws the codes from N(0, I)."""
        self.weight.normal_(generator=generator)


class Nearest(nn.Module):
    """The codes of the greatest logits: [N, G, M] -> [N, G, d].

    Args:
        codes: the parameter [M, d] of `Distances`.
    """

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = codes  # stays a parameter

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x.argmax(-1), self.codes)


def vq_mlp(
    shape: Sequence[int],
    classes: int,
    *,
    hidden: int = 64,
    groups: int = 8,
    size: int = 4,
    codes: int = 16,
    activation: str = "relu",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a classifier with a vector-quantised bottleneck, [N, *shape] -> [N, classes].

    Args:
        shape: shape of an example.
        classes: number of outputs.
        hidden: number of hidden units before the bottleneck.
        groups: G, vectors of an example.
        size: d, size of a vector.
        codes: M, at least 2; an example passes as G numbers below M.
        activation: a name of `ACTIVATIONS`, of the hidden units.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning, NeurIPS 2017.
    """
    check_counts("vq_mlp", hidden=hidden, groups=groups, size=size)
    check_counts("vq_mlp", 2, codes=codes)

    def build() -> nn.Sequential:
        distances = Distances(size, codes)
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), hidden), ACTIVATIONS[activation]()),
            *(nn.Linear(hidden, groups * size), nn.Unflatten(1, (groups, size))),
            *(distances, Nearest(distances.weight), nn.Flatten()),
            nn.Linear(groups * size, classes),
        )

    return initialised(build, generator)


build_vq_mlp = configured(vq_mlp)
