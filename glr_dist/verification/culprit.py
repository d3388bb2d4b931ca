"""The culprit: the first module whose output differs between two passes although its input does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glr_dist.checks import hookable
from glr_dist.trees import leaves

# Rounding error of the number format with the fewest digits inside the network; 0 if unknown.
_ROUNDING: ContextVar[float] = ContextVar("glr_dist_rounding", default=0.0)


class Call(NamedTuple):
    """One call of a module in a traced pass."""

    name: str
    module: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


def close(a: Tensor, b: Tensor) -> bool:
    """True if two tensors agree up to rounding: within √eps of the greatest magnitude.

    eps is that of the tensors or, within `rounding`, of the coarsest number format of the network.
    """
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    size = torch.nan_to_num(torch.stack([a.abs().max(), b.abs().max()])).max().item() if a.numel() else 0.0
    tolerance = max(torch.finfo(a.dtype).eps, _ROUNDING.get()) ** 0.5
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * size, equal_nan=True)


@contextmanager
def rounding(model: nn.Module, run: Callable[[], object]) -> Iterator[None]:
    """Lets `close` allow for the number formats of the modules' outputs in a pass, such as bfloat16 under autocast."""
    seen = [0.0]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        seen.extend(torch.finfo(leaf.dtype).eps for leaf in leaves(output) if leaf.is_floating_point())

    # Before the hooks of the sites, whose noise has the format of the parameters.
    handles = [module.register_forward_hook(leave, prepend=True) for _, module in hookable(model)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    previous = _ROUNDING.set(max(seen))
    try:
        yield
    finally:
        _ROUNDING.reset(previous)


@contextmanager
def traced(model: nn.Module) -> Iterator[list[Call]]:
    """Records the calls of all modules in the order in which they return: an inner module before its parent."""
    calls: list[Call] = []
    pending: list[list[Tensor]] = []
    handles = []

    def clones(value: Any) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in leaves(value)]

    for name, module in hookable(model):

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            pending.append(clones((args, kwargs)))

        def leave(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            calls.append(Call(name, module, pending.pop(), clones(output)))

        handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def culprit(model: nn.Module, first: list[Call], second: list[Call], part: Callable[[Tensor], Tensor]) -> str | None:
    """Returns the name and type of the first module whose outputs differ while its inputs agree, or None.

    Args:
        model: the traced network.
        first, second: the calls of two passes.
        part: returns the part of a tensor that is compared, such as that of one example.
    """

    def agree(a: list[Tensor], b: list[Tensor]) -> bool:
        return len(a) == len(b) and all(close(part(x), part(y)) for x, y in zip(a, b, strict=True))

    for a, b in zip(first, second, strict=False):
        if a.name != b.name:
            break
        if agree(a.inputs, b.inputs) and not agree(a.outputs, b.outputs):
            return f"'{a.name}' ({type(a.module).__name__})" if a.name else f"the network ({type(a.module).__name__})"
    return None
