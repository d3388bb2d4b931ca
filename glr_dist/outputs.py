"""Inputs and outputs of a network: how a batch is passed to a module, and which of its values is the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from glr_dist.errors import SiteError
from glr_dist.trees import Tree, leaves

# A key, index or attribute of the returned value, a function of it, or None for the only tensor.
Output = str | int | Callable[[Any], Tensor] | None


def call(module: nn.Module, x: Tree) -> Any:
    """Calls a module with a batch: a tuple as positional arguments, a mapping as keyword arguments."""
    if isinstance(x, Mapping):
        return module(**x)
    return module(*x) if isinstance(x, tuple) else module(x)


def selected(value: Any, output: Output) -> Tensor:
    """Returns the output among the values that a network returns.

    Args:
        value: a tensor, or a tuple, a mapping or an object that holds tensors.
        output: a key, an index, the name of an attribute, or a function of the value; None takes `logits` where there
            is one, else the only tensor.

    Raises:
        SiteError: `output` is not there, or None does not decide.
    """
    if callable(output):
        return output(value)
    if output is not None:
        try:
            if isinstance(output, int) or isinstance(value, Mapping):
                return value[output]  # type: ignore[no-any-return]
            return getattr(value, output)  # type: ignore[no-any-return]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise SiteError(f"output: the network does not return {output!r}: it returns {_described(value)}") from None
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping) and "logits" in value:
        return value["logits"]  # type: ignore[no-any-return]
    if isinstance(logits := getattr(value, "logits", None), Tensor):
        return logits
    if len(found := leaves(value)) == 1:
        return found[0]
    choice = repr(next(iter(value), "name")) if isinstance(value, Mapping) else "0"
    raise SiteError(f"the network returns {_described(value)}: choose its output, such as output={choice}")


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping with the keys " + ", ".join(map(repr, value))
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"a {type(value).__name__}"
