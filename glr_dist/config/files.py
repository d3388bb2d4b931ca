"""Files of settings, and overrides of what they hold: plain values, which know no section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from glr_dist.errors import ConfigError
from glr_dist.text import one_line

_INT, _STR = "tag:yaml.org,2002:int", "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """YAML with whole numbers as keys taken for text, as the names of sites, and epochs, are text in JSON.

    A key that stands twice is a mistake: by default the last one wins silently.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            key.tag = _STR if key.tag == _INT else key.tag
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: the file is missing, no YAML, or no mapping.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({one_line(error)})") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: must hold a mapping of sections, holds a {type(values).__name__}")
    return values or {}


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with `section.key=value` overrides applied, in place.

    Raises:
        ConfigError: an override has another form.
    """
    for override in overrides:
        _apply(values, override)
    return values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r}: an override must have the form section.key=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if inner is None:
            inner = values[parent] = {}
        elif not isinstance(inner, dict):
            raise ConfigError(f"{key}: '{parent}' holds {inner!r}, not a mapping")
        values = inner
    values[last] = value
