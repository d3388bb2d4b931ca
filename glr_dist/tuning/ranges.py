"""Ranges of the searched fields, as a search file writes them. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from glr_dist.config import Positive, Section, build
from glr_dist.errors import ConfigError
from glr_dist.text import hint, shown

_MAX = 1e30  # bounds of numbers, far from the overflow of their differences and ratios
_MAX_INTEGER = 2**53  # the last integer up to which float64 is exact
_MAX_FIELD = 200  # characters
_MAX_VALUES = 1000  # of a list: the network at each of them is built before the search begins

Finite = Annotated[float, Field(ge=-_MAX, le=_MAX)]
Scale = Annotated[Positive, Field(ge=1 / _MAX, le=_MAX)]
Integer = Annotated[int, Field(ge=-_MAX_INTEGER, le=_MAX_INTEGER)]


class Range(Section):
    """The values that a field may take; exactly one of the five kinds is set. Ranges include both ends."""

    loguniform: tuple[Scale, Scale] | None = Field(None, description="a number between two, uniform in its log")
    uniform: tuple[Finite, Finite] | None = Field(None, description="a number between two")
    randint: tuple[Integer, Integer] | None = Field(None, description="an integer between two")
    choice: tuple[Any, ...] | None = Field(None, description="one value of a list")
    grid: tuple[Any, ...] | None = Field(None, description="every value of a list (algorithm 'grid')")

    @property
    def kind(self) -> str:
        """The kind that is set, e.g. "uniform"."""
        return next(iter(self.model_dump(exclude_none=True)))

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """The values of a `choice` or a `grid`, None for a range of numbers."""
        return self.choice or self.grid

    def ends(self) -> tuple[Any, ...]:
        """Returns both ends of a range of numbers, or all values of a list."""
        found: tuple[Any, ...] = getattr(self, self.kind)
        return found

    def at(self, u: float) -> float:
        """Returns the quantile of a uniform or loguniform range at u in [0, 1]."""
        low, high = self.ends()
        return float(low * (high / low) ** u if self.kind == "loguniform" else low + (high - low) * u)

    def described(self) -> str:
        """Returns the range as text, e.g. "uniform [1.0, 2.0]"."""
        return f"{self.kind} {list(self.ends())}"

    def contains(self, value: Any) -> bool:
        """Returns True if the field may take this value."""
        if self.listed is not None:
            return value in self.listed
        low, high = self.ends()
        return isinstance(value, int if self.kind == "randint" else int | float) and low <= value <= high


Space = Mapping[str, Range]


def parse_space(given: Any) -> dict[str, Range]:
    """Parses a search space into ranges by dotted field.

    Args:
        given: `{noise.scale: {uniform: [1, 2]}}`, or nested: `{noise: {scale: {uniform: [1, 2]}}}`.

    Raises:
        ConfigError: the space is empty, or an entry is not a range.
    """
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"tune.space: {shown(given)} is not allowed: expected a mapping of fields to ranges")
    return dict(_ranges(given, ""))


def _ranges(given: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Range]]:
    kinds = Range.model_fields
    for key, value in given.items():
        field = f"{prefix}{key}"
        if not field.isprintable() or len(field) > _MAX_FIELD:
            raise ConfigError(f"tune.space: {shown(field)} is not a field of the configuration")
        if not isinstance(value, Mapping):
            listed = hint(str(key), kinds, listed="use one of")
            raise ConfigError(f"tune.space.{field}: {shown(value)} is not a range; {listed}")
        if kinds.keys() & value.keys() or not value:
            yield field, _range(field, value)
        else:
            yield from _ranges(value, f"{field}.")


def _range(field: str, given: Mapping[Any, Any]) -> Range:
    if len(given) != 1:
        kinds = ", ".join(Range.model_fields)
        raise ConfigError(f"tune.space.{field}: {shown(dict(given))} is not a range; use exactly one of {kinds}")
    ((kind, values),) = given.items()
    lists = kind in ("choice", "grid")
    if not isinstance(values, list | tuple) or (not values if lists else len(values) != 2):
        expected = "a list of values" if lists else "[LOWER, UPPER]"
        raise ConfigError(f"tune.space.{field}.{kind}: {shown(values)} is not allowed; expected {expected}")
    if len(values) > _MAX_VALUES:
        raise ConfigError(f"tune.space.{field}.{kind}: {len(values)} values are too many; at most {_MAX_VALUES}")
    allowed = build(Range, given, f"tune.space.{field}.")
    ends = allowed.ends()
    if not lists and not ends[0] < ends[1]:
        raise ConfigError(f"tune.space.{field}.{kind}: {list(ends)} is empty; write the lower end first")
    return allowed
