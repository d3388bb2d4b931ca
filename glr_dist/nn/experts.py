"""A hard mixture of experts: the greatest noisy gate logit alone decides which expert answers.

The choice has no derivative; the noise at the gate trains it. All experts compute their hidden layer, in one linear
layer, and all but the chosen one are masked: each site runs once for all examples.

Shapes: N examples, E experts of H hidden units; hidden layers [N, E·H] behind gate logits [N, E].
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


class Experts(nn.Module):
    """Gate logits and hidden layers of all experts, before their activation: x [N, I] -> [N, E + E·H]."""

    def __init__(self, inputs: int, experts: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.hidden = nn.Linear(inputs, experts), nn.Linear(inputs, experts * hidden)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.gate(x), self.hidden(x)), 1)


class TopOne(nn.Module):
    """Keeps the hidden layer of the expert with the greatest gate logit: [N, E + E·H] -> [N, E·H], else zeros.

    Args:
        experts: E.
        activation: a name of `ACTIVATIONS`, of the hidden layers.
    """

    def __init__(self, experts: int, activation: str) -> None:
        super().__init__()
        self.experts, self.activation = experts, ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        gate, hidden = x.tensor_split((self.experts,), 1)
        chosen = F.one_hot(gate.argmax(1), self.experts).to(x.dtype)
        units: Tensor = self.activation(hidden).unflatten(1, (self.experts, -1))
        return (units * chosen.unsqueeze(2)).flatten(1)

    def extra_repr(self) -> str:
        return f"experts={self.experts}"


def mixture_of_experts(
    shape: Sequence[int],
    classes: int,
    *,
    experts: int = 4,
    hidden: int = 32,
    activation: str = "relu",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns a mixture of two-layer experts with top-1 routing, [N, *shape] -> [N, classes].

    The outputs are those of the chosen expert, not multiplied by its gate; the bias of the outputs is shared.

    Args:
        shape: shape of an example.
        classes: number of outputs.
        experts: E, at least 2.
        hidden: H, number of hidden units of an expert.
        activation: a name of `ACTIVATIONS`, of the hidden units.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        Fedus, Zoph, Shazeer: Switch Transformers, JMLR 2022, who multiply by the gate to have a gradient.
    """
    check_counts("mixture_of_experts", 2, experts=experts)
    check_counts("mixture_of_experts", hidden=hidden)

    def build() -> nn.Sequential:
        inputs = torch.Size(shape).numel()
        return nn.Sequential(
            nn.Flatten(),
            Experts(inputs, experts, hidden),
            TopOne(experts, activation),
            nn.Linear(experts * hidden, classes),
        )

    return initialised(build, generator)


build_mixture_of_experts = configured(mixture_of_experts)
