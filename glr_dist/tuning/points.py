"""Points of a search space: values by dotted field, and the configuration at a point. Imports neither torch nor Ray."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from glr_dist.config import Config
from glr_dist.tuning.ranges import Space

SCHEDULE = "noise.schedule"  # the field that population-based training writes
BY_SITE = ("noise.scale", "estimator.copies", "estimator.passes")  # one value for all sites, or one per name pattern


def field_parts(field: str) -> tuple[str, str, str]:
    """Splits a dotted field into (section, key, inner key); parts that it lacks are empty.

    The inner key is an argument of the optimizer or schedule, a pattern of site names, or an epoch.
    """
    section, _, rest = field.partition(".")
    key, _, inner = rest.partition(".")
    return section, key, inner


def with_point(values: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of the values of a configuration file with the values of a point set.

    Searched site patterns go before those of the file, because the first matching pattern counts. If the file has a
    single number for all sites, the other sites keep it.

    Args:
        values: sections of the file.
        point: values by dotted field.
    """
    result = copy.deepcopy(dict(values))
    inner: dict[str, dict[str, Any]] = {}
    for field, value in point.items():
        section, key, pattern = field_parts(field)
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
        section, key, _ = field_parts(field)
        before = result[section].get(key)
        if field in BY_SITE and not isinstance(before, Mapping):
            before = {"*": getattr(getattr(Config(), section), key) if before is None else before}
        others = before if isinstance(before, Mapping) else {}
        result[section][key] = {**mapping, **{name: others[name] for name in others if name not in mapping}}
    return result


def point_of(config: Mapping[str, Any], space: Space) -> dict[str, Any] | None:
    """Returns the point at which a resolved configuration lies, or None if it lies outside the space.

    Args:
        config: sections of the configuration, dumped as JSON.
        space: ranges by dotted field.
    """
    point = {}
    for field, allowed in space.items():
        section, key, pattern = field_parts(field)
        value = config.get(section)
        value = value.get(key) if key and isinstance(value, Mapping) else value
        if pattern and isinstance(value, Mapping):
            value = next((value[known] for known in value if known == pattern or fnmatchcase(pattern, known)), None)
        if not allowed.contains(value):
            return None
        point[field] = value
    return point


def grid_size(space: Space) -> int:
    """Returns the number of combinations of the listed values."""
    return math.prod(len(allowed.ends()) for allowed in space.values())


def grid_point(space: Space, number: int) -> dict[str, Any]:
    """Returns one combination of the listed values; the last field changes first."""
    point = {}
    for field, allowed in reversed(list(space.items())):
        number, index = divmod(number, len(allowed.ends()))
        point[field] = allowed.ends()[index]
    return {field: point[field] for field in space}


def edge_points(space: Space) -> list[tuple[str, Any, dict[str, Any]]]:
    """Returns points that try both ends of each range and each listed value, the other fields at their first value.

    Returns:
        A list of (tried field, its value, point).
    """
    first = {field: allowed.ends()[0] for field, allowed in space.items()}
    return [(field, value, {**first, field: value}) for field, allowed in space.items() for value in allowed.ends()]
