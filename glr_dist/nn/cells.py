"""Recurrent cells made of linear layers.

One call of `gates` per time step gives the pre-activations of all gates, z_t = W [x_t, h_{t-1}] + b: a site is one step
of one layer. The candidate of a GRU needs the hidden product alone, tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn)), so
a GRU has two more calls per step. The second bias of a gate, b_hh, is redundant beside b_ih; it stays as a constant.

Shapes: N examples, I inputs, H hidden units, P outputs (H, or proj_size of an LSTM), G gates whose pre-activations are
one product; x [N, I], h [N, P], c [N, H].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from glr_dist.errors import SiteError, UserError
from glr_dist.nn.same_state import Part, SameState, Ties, linear

State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM


class Cell(SameState):
    """One step of a recurrent layer, in place of `nn.RNNCell`, `nn.GRUCell` or `nn.LSTMCell`.

    Args:
        input_size: I.
        hidden_size: H.
        outer: the parameters of the replaced cell by state-dict key.
        name: its name, for errors.
        ties: parameters of the modules replaced before.
    """

    gate_count = 1  # G
    hidden_bias: Tensor | None

    def __init__(
        self, input_size: int, hidden_size: int, outer: Mapping[str, nn.Parameter], name: str, ties: Ties
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, "bias_ih" in outer
        self.output_size = outer["weight_hh"].shape[1]
        rows = self.gate_count * hidden_size
        self.gates = linear(input_size + self.output_size, rows, self.bias)
        self.register_buffer("hidden_bias", torch.empty(rows) if self.bias else None)
        self.layout = {
            "weight_ih": (Part("gates.weight", rows, slice(input_size)),),
            "weight_hh": (Part("gates.weight", rows, slice(input_size, None)),),
        }
        if self.bias:
            self.layout |= {"bias_ih": (Part("gates.bias", rows),), "bias_hh": (Part("hidden_bias", rows),)}
            if outer["bias_hh"].requires_grad and not outer["bias_ih"].requires_grad:
                raise SiteError(f"'{name}': of the two biases of a gate bias_ih is trained; freeze bias_hh instead")
        self._build()
        self.take(name, outer, ties)

    def _build(self) -> None:
        """Adds further layers, and their parts to the layout."""

    def step(self, x: Tensor, state: State) -> State:
        """Returns the next state for inputs x [N, I] of one time step."""
        raise NotImplementedError

    def initial(self, x: Tensor) -> State:
        """Returns the state before the first step, zeros, for inputs x [N, …]."""
        return (x.new_zeros(x.shape[0], self.output_size),)  # `len` would fix the batch of an exported program

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> Tensor | State:
        """Returns the next h, or (h, c) of an LSTM cell; takes the arguments of torch's cell.

        Raises:
            UserError: the input or the state has another shape.
        """
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        state = self.initial(x)
        if hx is not None:
            given = (hx,) if isinstance(hx, Tensor) else hx
            state = checked_state(type(self).__name__, given if batched else [h.unsqueeze(0) for h in given], state)
        new = self.step(x, state)
        if not batched:
            new = tuple(h.squeeze(0) for h in new)
        return new if len(new) > 1 else new[0]

    def preactivations(self, x: Tensor, h: Tensor) -> Tensor:
        """Returns W [x, h] + b_ih + b_hh [N, G·H]."""
        z: Tensor = self.gates(torch.cat((x, h), -1))
        return z if self.hidden_bias is None else z + self.hidden_bias

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"


class TanhCell(Cell):
    """h' = tanh(W [x, h] + b)."""

    def step(self, x: Tensor, state: State) -> State:
        return (self.preactivations(x, state[0]).tanh(),)


class ReLUCell(Cell):
    """h' = max(0, W [x, h] + b)."""

    def step(self, x: Tensor, state: State) -> State:
        return (self.preactivations(x, state[0]).relu(),)


class GRUCell(Cell):
    """h' = (1 - u) n + u h with gates r, u = sigmoid(W [x, h] + b), n = tanh(W_in x + b_in + r (W_hn h + b_hn))."""

    gate_count = 2

    def _build(self) -> None:
        size = self.hidden_size
        self.candidate_input = linear(self.input_size, size, self.bias)
        self.candidate_hidden = linear(size, size, self.bias)
        inner = {"ih": "candidate_input", "hh": "candidate_hidden"}
        self.layout = {
            key: (*parts, Part(f"{inner[key[-2:]]}.{key.partition('_')[0]}", size))
            for key, parts in self.layout.items()
        }

    def step(self, x: Tensor, state: State) -> State:
        (h,) = state
        reset, update = self.preactivations(x, h).sigmoid().chunk(2, -1)
        candidate = (self.candidate_input(x) + reset * self.candidate_hidden(h)).tanh()
        return ((1 - update) * candidate + update * h,)


class LSTMCell(Cell):
    """c' = f c + i g, h' = o tanh(c') with gates i, f, o = sigmoid and g = tanh of W [x, h] + b; may project h'."""

    gate_count = 4
    projection: nn.Linear | None

    def _build(self) -> None:
        projected = self.output_size != self.hidden_size
        self.projection = linear(self.hidden_size, self.output_size, False) if projected else None
        if projected:
            self.layout = {**self.layout, "weight_hr": (Part("projection.weight"),)}

    def initial(self, x: Tensor) -> State:
        return *super().initial(x), x.new_zeros(x.shape[0], self.hidden_size)

    def step(self, x: Tensor, state: State) -> State:
        h, c = state
        take, keep, new, out = self.preactivations(x, h).chunk(4, -1)
        c = keep.sigmoid() * c + take.sigmoid() * new.tanh()
        h = out.sigmoid() * c.tanh()
        return (h if self.projection is None else self.projection(h)), c


CELLS: Mapping[str, type[Cell]] = {"RNN_TANH": TanhCell, "RNN_RELU": ReLUCell, "GRU": GRUCell, "LSTM": LSTMCell}


def checked_state(kind: str, given: Sequence[Tensor], zeros: Sequence[Tensor]) -> State:
    """Returns an initial state if it has the number and shapes of the tensors of the zero state.

    Raises:
        UserError: names both shapes.
    """
    shapes, allowed = ([list(h.shape) for h in state] for state in (given, zeros))
    if shapes != allowed:
        raise UserError(f"{kind}: the initial state has shape {shapes}, must have {allowed}")
    return tuple(given)
