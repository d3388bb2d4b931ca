"""Recurrent layers made of the cells of `cells.py`.

Shapes: N examples, T steps, I inputs, P outputs of a cell, D directions (1 or 2); x [N, T, I] inside.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from glr_dist.errors import UserError
from glr_dist.nn.cells import CELLS, Cell, State, checked_state
from glr_dist.nn.dropout import Dropout
from glr_dist.nn.same_state import Part, SameState, Ties


class Recurrent(SameState):
    """An `nn.RNN`, `nn.GRU` or `nn.LSTM` that calls a cell for each layer, direction and time step.

    The cells are the submodules l0, l0_reverse, l1, …; dropout between layers is keyed. Sites see [N, …] for either
    layout of the inputs.

    Args:
        layer: the module to replace.
        name: its name, for errors.
        ties: parameters of the modules replaced before.
    """

    def __init__(self, layer: nn.RNNBase, name: str, ties: Ties) -> None:
        super().__init__()
        self.mode, self.name = layer.mode, name
        self.input_size, self.hidden_size, self.proj_size = layer.input_size, layer.hidden_size, layer.proj_size
        self.num_layers, self.bidirectional, self.bias = layer.num_layers, layer.bidirectional, layer.bias
        self.batch_first, self.dropout = layer.batch_first, layer.dropout
        self.layout: dict[str, tuple[Part, ...]] = {}
        parameters = dict(layer.named_parameters(remove_duplicate=False))
        for suffix in (suffix for pair in self._suffixes() for suffix in pair):
            outer = {
                key.removesuffix(f"_{suffix}"): parameter
                for key, parameter in parameters.items()
                if key.endswith(f"_{suffix}")
            }
            inputs = outer["weight_ih"].shape[1]
            self.add_module(suffix, CELLS[self.mode](inputs, self.hidden_size, outer, f"{name}.{suffix}", ties))
            self.layout |= {f"{key}_{suffix}": (Part(f"{suffix}.{key}"),) for key in outer}
        between = self.num_layers - 1 if self.dropout else 0
        self.dropouts = nn.ModuleList(Dropout(self.dropout) for _ in range(between))

    def _suffixes(self) -> list[tuple[str, ...]]:
        """Returns the names of the cells of each layer, as torch's parameters have them at their end."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [tuple(f"l{layer}{direction}" for direction in directions) for layer in range(self.num_layers)]

    def _cells(self) -> list[list[Cell]]:
        """Returns the cells of each layer, forward first."""
        return [[cast(Cell, self.get_submodule(suffix)) for suffix in suffixes] for suffixes in self._suffixes()]

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> tuple[Tensor, Tensor | State]:
        """Returns the outputs of the last layer and the last states; takes the arguments of torch's layer.

        Raises:
            UserError: a packed sequence, or an input or initial state of another shape.
        """
        x = self._batch_first(input)
        states = self._initial(x, hx, batched=input.dim() == 3)
        last: list[State] = []
        for layer, cells in enumerate(self._cells()):
            outputs = []
            for direction, cell in enumerate(cells):
                output, state = _run(cell, x, states[len(last)], reverse=direction == 1)
                outputs.append(output)
                last.append(state)
            x = torch.cat(outputs, -1)
            if layer < len(self.dropouts):
                x = self.dropouts[layer](x)
        ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))  # [layers · D, N, P]
        if input.dim() == 2:
            x, ends = x.squeeze(0), tuple(end.squeeze(1) for end in ends)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x, ends if len(ends) > 1 else ends[0]

    def _batch_first(self, input: Tensor) -> Tensor:
        """Returns the inputs as [N, T, I]."""
        if isinstance(input, PackedSequence):
            raise UserError(
                f"'{self.name}' ({self.mode}): packed sequences are not supported; pass the padded sequences, and mask "
                "the outputs beyond their lengths"
            )
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise UserError(
                f"'{self.name}' ({self.mode}): the input has shape {list(input.shape)}, must be a sequence of "
                f"{self.input_size} features, {'[N, T, I]' if self.batch_first else '[T, N, I]'} or [T, I]"
            )
        x = input.unsqueeze(0) if input.dim() == 2 else input if self.batch_first else input.transpose(0, 1)
        if x.shape[1] == 0:
            raise UserError(f"'{self.name}' ({self.mode}): the sequence is empty, must have at least one time step")
        return x

    def _initial(self, x: Tensor, hx: Tensor | State | None, *, batched: bool) -> list[State]:
        """Returns the state of every cell before its first step; `hx` is torch's, [layers · D, N, P] for each part."""
        zeros = [cell.initial(x) for cells in self._cells() for cell in cells]
        if hx is None:
            return zeros
        given = (hx,) if isinstance(hx, Tensor) else hx
        given = given if batched else tuple(part.unsqueeze(1) for part in given)
        allowed = [torch.stack(parts) for parts in zip(*zeros, strict=True)]
        return list(zip(*checked_state(f"'{self.name}' ({self.mode})", given, allowed), strict=True))

    def flatten_parameters(self) -> None:
        """Does nothing; the replaced module has this method."""

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, batch_first={self.batch_first}"


def _run(cell: Cell, x: Tensor, state: State, *, reverse: bool) -> tuple[Tensor, State]:
    """Returns the outputs [N, T, P] of a cell for x [N, T, I], and its last state."""
    steps = range(x.shape[1])
    outputs = []
    for t in reversed(steps) if reverse else steps:
        state = cell.step(x[:, t], state)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs, 1), state
