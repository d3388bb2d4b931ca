"""Arguments of a compiled function: it takes as tensors all that it would read from a model, a batch or a tape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from glr_dist.trees import Tree, leaves, mapped

C = TypeVar("C")

Name = tuple[str, Any]  # kind of an argument, and which of that kind


class Held(NamedTuple):
    """A parameter or buffer: the module that holds it, and its name there."""

    module: nn.Module
    name: str

    def tensor(self) -> Tensor:
        """Returns the tensor that the module holds now."""
        found: Tensor = getattr(self.module, self.name)
        return found.detach()


def held(model: nn.Module) -> dict[Held, Tensor]:
    """Returns the parameters and buffers of a model; a tied one is listed once."""
    named = dict((*model.named_parameters(), *model.named_buffers()))
    places = ((name.rpartition("."), tensor) for name, tensor in named.items())
    return {Held(model.get_submodule(owner), name): tensor for (owner, _, name), tensor in places}


@contextmanager
def lent(model: nn.Module, given: Mapping[Name, Tensor]) -> Iterator[None]:
    """Lets a model use the arguments of kind "tensor" in the place of its parameters and buffers."""
    tensors = {id(tensor): given["tensor", place] for place, tensor in held(model).items()}
    kept = []
    try:
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        kept.append((store, name, tensor))
                        store[name] = tensors[id(tensor)]  # type: ignore[assignment]
        yield
    finally:
        for store, name, tensor in kept:
            store[name] = tensor  # type: ignore[assignment]


def names_of(kind: str, tree: Tree) -> list[Name]:
    """Returns the names of the arguments that are the tensors of a tree."""
    return [(kind, i) for i in range(len(leaves(tree)))]


def values(sources: Mapping[str, Callable[[C, Any], Tensor]], call: C, names: Sequence[Name]) -> list[Tensor]:
    """Returns the arguments of a call, each from the source of its kind."""
    return [sources[kind](call, which).contiguous() for kind, which in names]


def of_kind(given: Mapping[Name, Tensor], kind: str, tree: Tree) -> Tree:
    """Returns a tree with the arguments of a kind in the place of its tensors."""
    places = iter(range(len(leaves(tree))))
    return mapped(lambda _: given[kind, next(places)], tree)
