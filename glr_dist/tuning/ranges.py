"""Ranges of the searched fields, as a search file writes them. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from glr_dist.config import Positive, Section, build
from glr_dist.errors import ConfigError
from glr_dist.text import hint

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Range(Section):
    """The values that a field may take; exactly one of the five kinds is set. Ranges include both ends."""

    loguniform: tuple[Positive, Positive] | None = Field(None, description="a number between two, uniform in its log")
    uniform: tuple[Finite, Finite] | None = Field(None, description="a number between two")
    randint: tuple[int, int] | None = Field(None, description="an integer between two")
    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one value of a list")
    grid: tuple[Any, ...] | None = Field(None, min_length=1, description="every value of a list (algorithm 'grid')")

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
        raise ConfigError(f"tune.space: {given!r} is not allowed: expected a mapping of fields to ranges")
    return dict(_ranges(given, ""))


def _ranges(given: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Range]]:
    kinds = Range.model_fields
    for key, value in given.items():
        field = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            listed = hint(str(key), kinds, listed="use one of")
            raise ConfigError(f"tune.space.{field}: {value!r} is not a range; {listed}")
        if kinds.keys() & value.keys() or not value:
            yield field, _range(field, value)
        else:
            yield from _ranges(value, f"{field}.")


def _range(field: str, value: Mapping[Any, Any]) -> Range:
    if len(value) != 1:
        kinds = ", ".join(Range.model_fields)
        raise ConfigError(f"tune.space.{field}: {dict(value)} is not a range; use exactly one of {kinds}")
    allowed = build(Range, value, f"tune.space.{field}.")
    ends = allowed.ends()
    if allowed.listed is None and not ends[0] < ends[1]:
        raise ConfigError(f"tune.space.{field}.{allowed.kind}: {list(ends)} is empty; write the lower end first")
    return allowed
