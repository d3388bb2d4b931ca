"""A gated recurrent unit that reads an image row by row, and classifies it by its last state.

A step calls two linear layers, one for both gates and one for the candidate; each call is a site. Each step is a block
of the chain: the value that passes from block to block holds the rows that are still to be read and the state, so a
redraw at step t runs only the steps from t on. The last columns are those of the next row and of the state; a step
writes the new state over them, in place, since copying the other rows would take longer than the products.

Shapes: N examples, T rows of I = C·W inputs, H units; rows left and state [N, (T - t)·I + H].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glr_dist.nn.arguments import check_counts, check_image
from glr_dist.nn.builder import configured
from glr_dist.nn.initial import initialised


class Rows(nn.Module):
    """Puts the zero state behind the rows of images, the first of which is the last: [N, C, T, W] -> [N, T·I + H]."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flip(1).flatten(1)
        return torch.cat((rows, rows.new_zeros(x.shape[0], self.units)), 1)


class GRUStep(nn.Module):
    """Reads one row: [N, k·I + H] -> [N, (k - 1)·I + H]. It overwrites its input.

    r, u = sigmoid(W [x, h] + b), n = tanh(V [x, r h] + c), h' = (1 - u) n + u h.

    Args:
        inputs: I, size of a row.
        units: H.

    Reference:
        Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014. `nn.GRU` multiplies by r
        after the product, and so needs three products per step.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.inputs, self.units = inputs, units
        self.gates = nn.Linear(inputs + units, 2 * units)
        self.candidate = nn.Linear(inputs + units, units)

    def forward(self, s: Tensor) -> Tensor:
        last = s[:, -(self.inputs + self.units) :].clone()
        x, h = last.tensor_split((self.inputs,), 1)
        reset, update = self.gates(last).sigmoid().chunk(2, 1)
        candidate = self.candidate(torch.cat((x, reset * h), 1)).tanh()
        left = s[:, : -self.inputs]
        left[:, -self.units :] = candidate.lerp(h, update)
        return left


class GRUClassifier(nn.Module):
    """Classifies images [N, C, T, W] by the state of a GRU after their last row, [N, classes]; see `gru`."""

    def __init__(self, inputs: int, rows: int, units: int, classes: int) -> None:
        super().__init__()
        self.rows = rows
        self.start, self.step, self.head = Rows(units), GRUStep(inputs, units), nn.Linear(units, classes)

    def chain(self) -> list[nn.Module]:
        return [self.start, *[self.step] * self.rows, self.head]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.chain():
            x = block(x)
        return x


def gru(
    shape: Sequence[int], classes: int, *, units: int = 64, generator: torch.Generator | None = None
) -> GRUClassifier:
    """Returns a GRU that reads images [N, C, T, W] row by row, [N, classes].

    Args:
        shape: shape (C, T, W) of an image.
        classes: number of outputs.
        units: H, number of units of the state.
        generator: stream of the initial weights.

    Raises:
        ConfigError: an argument is not allowed.

    Reference:
        Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014.
    """
    check_counts("gru", units=units)
    channels, rows, width = check_image("gru", shape)
    return initialised(lambda: GRUClassifier(channels * width, rows, units, classes), generator)


build_gru = configured(gru)
