"""The chain of blocks that a network's forward pass is."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from torch import nn

from glr_dist.errors import SiteError


class Chained(Protocol):
    """A module whose forward pass is a chain: it calls the blocks of `chain()` one after another."""

    def chain(self) -> Iterable[nn.Module]:
        """Returns the blocks in the order of their calls."""
        ...


class Block(NamedTuple):
    """One link of the chain."""

    name: str
    module: nn.Module


def chain(model: nn.Module) -> list[Block]:
    """Returns the blocks of a network: those of an `nn.Sequential` (nested ones flattened), or of `model.chain()`.

    Any other module is a chain of one block: it works, but every redraw runs the whole module again. A compiled module
    is that which was compiled.

    Raises:
        SiteError: `chain()` returns anything but modules of the model.
    """
    names = {module: name for name, module in model.named_modules(remove_duplicate=True)}
    blocks: list[Block] = []

    def add(module: nn.Module) -> None:
        links: Iterable[nn.Module]
        module = getattr(module, "_orig_mod", module)  # of torch.compile
        if getattr(type(module), "forward", None) is nn.Sequential.forward:
            links = module._modules.values()  # type: ignore[assignment]  # children() would drop a repeated link
        elif _has_chain(module):
            links = module.chain()  # type: ignore[operator]
        else:
            if module not in names:
                raise SiteError(
                    f"{type(model).__name__}.chain(): contains a {type(module).__name__} that is not a submodule: let "
                    "it return modules of the network, or rename the method"
                )
            blocks.append(Block(names[module], module))
            return
        for link in links:
            add(link)

    add(model)
    return blocks


def _has_chain(module: object) -> bool:
    """True if a module is `Chained`; a method or attribute `chain` of another meaning is the user's own."""
    method = getattr(module, "chain", None)
    if not inspect.ismethod(method):
        return False
    return all(
        parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in inspect.signature(method).parameters.values()
    )
