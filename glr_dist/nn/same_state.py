"""Modules that replace a torch module, with other parameters inside and the same state-dict keys outside.

A tensor of the replaced module (outer) is a stack of rows; each of its parts is a block of columns of one tensor of the
new module (inner). An inner tensor consists of the blocks of all outer tensors that name it, side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glr_dist.errors import SiteError


@dataclass(frozen=True)
class Part:
    """Consecutive rows of an outer tensor.

    Attributes:
        name: key of the inner tensor that holds them.
        rows: their number; None if they are the whole outer tensor.
        columns: columns of the inner tensor that hold them; None for all.
    """

    name: str
    rows: int | None = None
    columns: slice | None = None


Blocks = tuple[tuple[nn.Parameter, int, int], ...]  # (outer parameter, first row, number of rows), side by side
Identity = tuple[tuple[int, int, int], ...]  # the same with the ids of the parameters: tensors compare by value
UNTIE = "untie it first: module.parameter = nn.Parameter(module.parameter.detach().clone())"
Layout = Mapping[str, tuple[Part, ...]]  # outer key -> its parts, from the first row to the last


class Ties:
    """Inner parameters made so far, so that modules that shared parameters share them again."""

    def __init__(self) -> None:
        self._made: dict[Identity, nn.Parameter] = {}
        # outer parameter -> its key in the first module that it was part of, and the inner tensors made of it
        self._uses: dict[nn.Parameter, tuple[str, tuple[Identity, ...]]] = {}

    def parameter(self, name: str, blocks: Blocks) -> nn.Parameter:
        """Returns the inner parameter made of blocks.

        Raises:
            SiteError: some of the blocks are frozen and others are not.
        """
        whole, _, rows = blocks[0]
        if len(blocks) == 1 and rows == len(whole):
            return whole
        identity = _identity(blocks)
        if identity not in self._made:
            trainable = {outer.requires_grad for outer, _, _ in blocks}
            if len(trainable) > 1:
                raise SiteError(f"'{name}': input and hidden weights become one matrix; freeze both or neither")
            columns = [outer.detach()[first : first + rows] for outer, first, rows in blocks]
            value = columns[0].clone() if len(columns) == 1 else torch.cat(columns, 1)
            self._made[identity] = nn.Parameter(value, trainable.pop())
        return self._made[identity]

    def use(self, name: str, composed: Mapping[str, nn.Parameter], inner: Iterable[Blocks]) -> None:
        """Notes the outer parameters of a module that do not stay parameters of their own.

        Args:
            name: name of the module, for errors.
            composed: these parameters by key.
            inner: the blocks of the inner tensors of the module.

        Raises:
            SiteError: one of them is shared in a way that the new module cannot keep.
        """
        for key, parameter in composed.items():
            found = tuple(_identity(blocks) for blocks in inner if any(outer is parameter for outer, _, _ in blocks))
            twice = sum(other is parameter for other in composed.values()) > 1
            if twice or self._uses.setdefault(parameter, (key, found))[1] != found:
                raise SiteError(f"'{name}': its parameter '{key}' is tied to another one; {UNTIE}")

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Forgets the uses noted within if the module could not be replaced after all."""
        before = dict(self._uses)
        try:
            yield
        except SiteError:
            self._uses = before
            raise

    def check(self, model: nn.Module) -> None:
        """Refuses a model in which a parameter that became part of another one is still used.

        Raises:
            SiteError: names the parameter.
        """
        for key, parameter in model.named_parameters():
            if parameter in self._uses:
                raise SiteError(f"'{key}' is tied to '{self._uses[parameter][0]}' of an opened module; {UNTIE}")


def _identity(blocks: Blocks) -> Identity:
    return tuple((id(outer), first, rows) for outer, first, rows in blocks)


class SameState(nn.Module):
    """Base class of modules whose state dict has the keys and values of the module that they replace."""

    layout: Layout

    def take(self, name: str, outer: Mapping[str, nn.Parameter], ties: Ties) -> None:
        """Takes over the parameters of the replaced module.

        Args:
            name: name of the replaced module, for errors.
            outer: its parameters by state-dict key.
            ties: the inner parameters of the modules replaced before.

        Raises:
            SiteError: they are frozen or tied in a way that this module cannot keep.
        """
        blocks: dict[str, list[tuple[nn.Parameter, int, int]]] = {}
        for key, parameter in outer.items():
            first = 0
            for part in self.layout.get(key, (Part(key),)):
                rows = len(parameter) if part.rows is None else part.rows
                blocks.setdefault(part.name, []).append((parameter, first, rows))
                first += rows
        inner = {key: tuple(found) for key, found in blocks.items()}
        ties.use(name, {key: value for key, value in outer.items() if self._composed(key)}, list(inner.values()))
        for key, found in inner.items():
            self._set(key, ties.parameter(name, found))

    def _composed(self, key: str) -> bool:
        """Returns True if an outer parameter becomes part of an inner one, or a buffer."""
        first, *others = self.layout.get(key, (Part(key),))
        owner, _, attribute = first.name.rpartition(".")
        return bool(others) or first.columns is not None or attribute in self.get_submodule(owner)._buffers

    def _set(self, key: str, parameter: nn.Parameter) -> None:
        owner, _, attribute = key.rpartition(".")
        module = self.get_submodule(owner)
        # A buffer holds what the new module does not train.
        setattr(module, attribute, parameter.detach().clone() if attribute in module._buffers else parameter)

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Returns the state under the keys of the replaced module; takes the arguments of `nn.Module.state_dict`."""
        state = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        inner = {part.name for parts in self.layout.values() for part in parts}
        values = {name: state.pop(f"{prefix}{name}") for name in inner if f"{prefix}{name}" in state}
        for key, parts in self.layout.items():
            if all(part.name in values for part in parts):
                rows = [
                    values[part.name] if part.columns is None else values[part.name][:, part.columns] for part in parts
                ]
                state[f"{prefix}{key}"] = rows[0] if len(rows) == 1 else torch.cat(rows)
        return state

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Turns the keys of the replaced module into those of this one before they are loaded."""
        values: dict[str, list[Tensor]] = {}
        own = self.state_dict()
        for key, parts in self.layout.items():
            if key not in own:
                continue
            value = state_dict.pop(f"{prefix}{key}", None)
            if value is None and strict:
                missing_keys.append(f"{prefix}{key}")
            elif value is not None and value.shape != own[key].shape:
                error_msgs.append(
                    f"size mismatch for {prefix}{key}: copying a param with shape {value.shape} from checkpoint, "
                    f"the shape in current model is {own[key].shape}."
                )
                value = None
            value = own[key] if value is None else value
            rows = value.split([part.rows for part in parts]) if len(parts) > 1 else [value]
            for part, block in zip(parts, rows, strict=True):
                values.setdefault(part.name, []).append(block)
        for name, found in values.items():
            state_dict[f"{prefix}{name}"] = found[0] if len(found) == 1 else torch.cat(found, 1)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """Returns a linear layer without values, which `take` fills; nothing is drawn from torch's global generator."""
    return nn.Linear(inputs, outputs, bias, device="meta")
