"""Sites: the module calls whose outputs (logits) receive noise, and the tape that a pass leaves for them.

A module that runs once in a pass is one site and gives it its name; one that runs T times (a recurrent cell, a shared
layer) is T sites, `cell[0]` … `cell[T - 1]`. Patterns match the module's name, and so mean all of its calls.

Shapes: N examples, z [N, *S] the logits of a site before noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

from glr_dist.errors import SiteError
from glr_dist.trees import Tree

T = TypeVar("T")

DEFAULT_TYPES: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Site:
    """A module call whose output receives noise, with the segment that ends in it.

    Attributes:
        index: position in the order of the calls.
        name: name of the module in the model, with the number of the call if it runs several times.
        module: the module.
        block: index of the block that is the site or contains it.
        top: True if the block is the site, False if the site is nested inside it.
        start: index of the first block of its segment.
        shape: shape of the logits of one example.
        owned: names of the trainable parameters that reach the loss through this site first.
        upstream: those of them that reach the input of the module, not only its product.
        suffix: share of the network's FLOPs that a redraw of this site's noise runs again.
        width: maximum number of elements per example of one tensor in that rerun.
    """

    index: int
    name: str
    module: nn.Module
    block: int
    top: bool
    start: int
    shape: torch.Size
    owned: tuple[str, ...]
    upstream: tuple[str, ...]
    suffix: float
    width: int

    @property
    def units(self) -> int:
        """Number of logits of the site per example, D."""
        return self.shape.numel()


@dataclass
class Tape:
    """Record of a pass: the tensors that the estimates of the sites need.

    Attributes:
        logits: z by site name, [N, *S].
        inputs: the site's input by site name, for the sites that have a direct rule.
        starts: the chain's value before a block, by block index, for the blocks that a segment is rerun from.
        losses: the loss of each example [N].
        u: random numbers of the head's estimates of expectations [N], where it makes such estimates.
        errors: the derivatives of the losses by the outputs [N, E], where a control variate needs them.
        statistics: moments of the calls of batch norms in the pass, [3, C] by "module.call".
        spaces: site -> the basis of its column space, and its logits with the noise outside it; kept by the first item
            that needs them, and never sent.
        noise: site -> σ ε [n, *S] of the pass; kept where steps are compiled, and never sent.
        part: the tape of the examples that are redrawn, if they are not all; kept by the first item that needs it, and
            never sent.
        rows: on such a tape, the numbers of its examples in the block [m]; None elsewhere.
        weights: on such a tape, the weights of its examples, one over the probability that each is drawn [m].
    """

    logits: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    starts: dict[int, Tree] = field(default_factory=dict)
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    u: Tensor = field(default_factory=lambda: torch.empty(0))
    errors: Tensor = field(default_factory=lambda: torch.empty(0))
    statistics: dict[str, Tensor] = field(default_factory=dict)
    spaces: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    noise: dict[str, Tensor] = field(default_factory=dict)
    part: Tape | None = None
    rows: Tensor | None = None
    weights: Tensor | None = None

    def weighted(self, values: Tensor) -> Tensor:
        """Returns values [..., n] times the weights of the examples; as they are where all examples are redrawn."""
        return values if self.weights is None else values * self.weights


_CALL = re.compile(r"\[\d+\]$")


def matches(site: str, pattern: str) -> bool:
    """True if a pattern names a site, or the module that it is a call of."""
    return pattern == site or fnmatchcase(site, pattern) or fnmatchcase(_CALL.sub("", site), pattern)


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Returns the names that some pattern matches and no pattern of the form `!…` excludes."""
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return [
        name
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in wanted or ["*"])
        and not any(fnmatchcase(name, pattern) for pattern in excluded)
    ]


def by_site(value: T | Mapping[str, T], names: Sequence[str], what: str) -> dict[str, T]:
    """Returns an option's value per site: one for all, or that of the first pattern that matches the site's name.

    Raises:
        SiteError: a site matches no pattern, or a pattern matches no site.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    for pattern in value:
        if not any(matches(name, pattern) for name in names):
            raise SiteError(f"{what}: the pattern '{pattern}' matches no site; the sites are {', '.join(names)}")
    found = {}
    for name in names:
        match = next((pattern for pattern in value if matches(name, pattern)), None)
        if match is None:
            known = ", ".join(value) or "an empty mapping"
            raise SiteError(f"{what}: no pattern of {known} matches the site '{name}'")
        found[name] = value[match]
    return found
