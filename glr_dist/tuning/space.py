"""What a search may vary: fields of the configuration and their ranges. Imports neither torch nor Ray."""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field

from glr_dist.config import Config, Positive, Section, build
from glr_dist.errors import ConfigError

SCHEDULE = "noise.schedule"  # the field that a population finds
BY_SITE = ("noise.scale", "estimator.copies", "estimator.passes")  # one for all, or one for each pattern of site names
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Range(Section):
    """The values that a field may take: one of the five is given. Both ends of a range belong to it."""

    loguniform: tuple[Positive, Positive] | None = Field(None, description="between two numbers, even on a log scale")
    uniform: tuple[Finite, Finite] | None = Field(None, description="between two numbers")
    randint: tuple[int, int] | None = Field(None, description="a whole number from the first to the second")
    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of a list")
    grid: tuple[Any, ...] | None = Field(None, min_length=1, description="each of a list, for the algorithm 'grid'")

    @property
    def kind(self) -> str:
        """Its key."""
        return next(iter(self.model_dump(exclude_none=True)))

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """The values, where they are a list."""
        return self.choice or self.grid

    def ends(self) -> tuple[Any, ...]:
        """The two ends of a range, or all values of a list."""
        found: tuple[Any, ...] = getattr(self, self.kind)
        return found

    def at(self, u: float) -> float:
        """What lies at a share u in [0, 1] of the way between two ends."""
        low, high = self.ends()
        return float(low * (high / low) ** u if self.kind == "loguniform" else low + (high - low) * u)

    def described(self) -> str:
        """Itself in a line."""
        return f"{self.kind} {list(self.ends())}"

    def holds(self, value: Any) -> bool:
        """Whether it has this value."""
        if self.listed is not None:
            return value in self.listed
        low, high = self.ends()
        return isinstance(value, int if self.kind == "randint" else int | float) and low <= value <= high


Space = Mapping[str, Range]


def ranges_of(given: Any) -> dict[str, Range]:
    """The ranges by dotted field, from `{noise.scale: {uniform: [1, 2]}}` or `{noise: {scale: {uniform: [1, 2]}}}`.

    Raises:
        ConfigError: there is none, or one of them is no range.
    """
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"tune.space: {given!r} is not allowed: a mapping of fields to their ranges")
    return dict(_ranges(given, ""))


def _ranges(given: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Range]]:
    kinds = Range.model_fields
    for key, value in given.items():
        field = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            near = difflib.get_close_matches(str(key), kinds, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"give one of {', '.join(kinds)}"
            raise ConfigError(f"tune.space.{field}: {value!r} is not a range; {hint}")
        if kinds.keys() & value.keys() or not value:
            if len(value) != 1:
                raise ConfigError(f"tune.space.{field}: {dict(value)} is not a range; give one of {', '.join(kinds)}")
            allowed = build(Range, value, f"tune.space.{field}.")
            ends = allowed.ends()
            if allowed.listed is None and not ends[0] < ends[1]:
                raise ConfigError(
                    f"tune.space.{field}.{allowed.kind}: {list(ends)} must be a lower and a higher number"
                )
            yield field, allowed
        else:
            yield from _ranges(value, f"{field}.")


def parts(field: str) -> tuple[str, str, str]:
    """The section of a dotted field, its key there, and what follows: the key of a mapping; empty where there is none.

    What follows is an argument of the optimizer, or a pattern of site names.
    """
    section, _, rest = field.partition(".")
    key, _, inner = rest.partition(".")
    return section, key, inner


def placed(values: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration file with a point of the space in them; the arguments stay as they are.

    A pattern of site names goes before those of the file, as the first one that matches counts. Where the file has one
    number for all sites, the others keep it.

    Args:
        values: the sections of the file.
        point: values by dotted field.
    """
    result = copy.deepcopy(dict(values))
    inner: dict[str, dict[str, Any]] = {}
    for field, value in point.items():
        section, key, pattern = parts(field)
        if not key:
            result[section] = value
            continue
        held = result.get(section)
        if not isinstance(held, dict):
            held = result[section] = {"kind": held} if section == "execution" and held else {}
        if not pattern:
            held[key] = value
        else:
            inner.setdefault(f"{section}.{key}", {})[pattern] = value
    for field, mapping in inner.items():
        section, key, _ = parts(field)
        before = result[section].get(key)
        if field in BY_SITE and not isinstance(before, Mapping):
            before = {"*": getattr(getattr(Config(), section), key) if before is None else before}
        others = before if isinstance(before, Mapping) else {}
        result[section][key] = {**mapping, **{name: others[name] for name in others if name not in mapping}}
    return result


def present(settings: Mapping[str, Any], space: Space) -> dict[str, Any] | None:
    """The point of the space that a resolved configuration is at, None if it is outside."""
    point = {}
    for field, allowed in space.items():
        section, key, pattern = parts(field)
        value = settings.get(section)
        value = value.get(key) if key and isinstance(value, Mapping) else value
        if pattern and isinstance(value, Mapping):
            value = next((value[known] for known in value if known == pattern or fnmatchcase(pattern, known)), None)
        if not allowed.holds(value):
            return None
        point[field] = value
    return point


def grid_of(space: Space) -> list[dict[str, Any]]:
    """Every combination of the lists."""
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*(r.ends() for r in space.values()))]


def edges(space: Space) -> list[tuple[str, Any, dict[str, Any]]]:
    """Points that try each end of each range and each value of each list, the other fields at their first.

    Returns:
        (the field that is tried, its value, the point).
    """
    first = {field: allowed.ends()[0] for field, allowed in space.items()}
    return [(field, value, {**first, field: value}) for field, allowed in space.items() for value in allowed.ends()]
