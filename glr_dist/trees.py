"""Trees: nested tuples, lists and mappings of tensors, such as a network's inputs, outputs and targets.

Every tensor of a batch is batch-first: its first dimension counts the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from glr_dist.errors import UserError

Tree = Any  # a Tensor, or a tuple, list or mapping of trees


def leaves(tree: Tree) -> list[Tensor]:
    """Returns the tensors of a tree, in order."""
    found: list[Tensor] = []
    mapped(found.append, tree)
    return found


def mapped(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """Returns the tree with `function` applied to its tensors; values of other types stay as they are."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: mapped(function, part) for key, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        parts = [mapped(function, part) for part in tree]
        return tuple(parts) if isinstance(tree, tuple) else parts
    return tree


def form(tree: Tree) -> Hashable:
    """Returns the form of a batch, all but the numbers in its tensors; one compiled function serves one form.

    That is the structure with its keys in order, the dtype and the shape of an example of each tensor, and the values
    of other types.
    """
    if isinstance(tree, Tensor):
        return tree.dtype, tree.shape[1:]
    if isinstance(tree, Mapping):
        return "mapping", tuple((key, form(part)) for key, part in tree.items())
    if isinstance(tree, (tuple, list)):
        return type(tree).__name__, tuple(map(form, tree))
    plain = tree is None or isinstance(tree, (bool, int, float, str, bytes))
    return type(tree).__qualname__, tree if plain else None


def count(tree: Tree, what: str) -> int:
    """Returns the number of examples of a batch.

    Raises:
        UserError: the tree holds no tensor, or its tensors differ in their number of examples.
    """
    if isinstance(tree, Tensor) and tree.dim():
        return tree.shape[0]
    found = {len(leaf) if leaf.dim() else 0 for leaf in leaves(tree)}
    if len(found) != 1:
        lengths = ", ".join(map(str, sorted(found))) or "no tensor"
        raise UserError(f"{what}: every tensor must hold the same number of examples in its first dimension: {lengths}")
    return found.pop()


def taken(tree: Tree, index: slice | Tensor) -> Tree:
    """Returns the examples of a slice or an index [n]."""
    return mapped(lambda leaf: leaf[index if isinstance(index, slice) else index.to(leaf.device)], tree)


def copied(tree: Tree, copies: int) -> Tree:
    """Returns C copies of a batch, [C·N, …]; the batch itself if C is 1."""
    return tree if copies == 1 else mapped(lambda leaf: leaf.repeat(copies, *[1] * (leaf.dim() - 1)), tree)


def cloned(tree: Tree) -> Tree:
    """Returns the tree with tensors of its own, detached from autograd."""
    return mapped(lambda leaf: leaf.detach().clone(), tree)


def equal(first: Tree, second: Tree) -> bool:
    """True if two trees of the same structure hold the same numbers."""
    return all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


def same_memory(a: Tensor, b: Tensor) -> bool:
    """True if two plain tensors hold the same elements in the same order in the same memory."""
    plain = all(t.layout is torch.strided and t.is_contiguous() and not t.is_inference() for t in (a, b))
    # A tensor whose operations are only recorded has no address.
    return plain and (a is b or (a.dtype is b.dtype and a.numel() == b.numel() and a.data_ptr() == b.data_ptr()))
