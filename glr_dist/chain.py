"""The chain of blocks that a network's forward pass is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from torch import nn

from glr_dist.errors import SiteError


@runtime_checkable
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

    Any other module is a chain of one block: it works, but every redraw runs the whole module again.
    """
    names = {module: name for name, module in model.named_modules(remove_duplicate=True)}
    blocks: list[Block] = []

    def add(module: nn.Module) -> None:
        links: Iterable[nn.Module]
        if type(module).forward is nn.Sequential.forward:
            links = module._modules.values()  # type: ignore[assignment]  # children() would drop a repeated link
        elif isinstance(module, Chained):
            links = module.chain()
        else:
            if module not in names:
                raise SiteError(
                    f"{type(model).__name__}.chain(): contains a {type(module).__name__} that is not a submodule"
                )
            blocks.append(Block(names[module], module))
            return
        for link in links:
            add(link)

    add(model)
    return blocks
