"""Configuration files and command-line overrides as plain values; sections are not known here.

The YAML is that of version 1.2 without tags: numbers are decimal, dates and `yes`/`no` are text, and keys are text.
A file is limited in size, depth and number of values, so that a small file cannot grow into a large one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from glr_dist.errors import ConfigError
from glr_dist.redaction import remember
from glr_dist.text import one_line, shown

_MAX_BYTES = 2**18
_MAX_DEPTH = 40
_MAX_VALUES = 10_000  # counts what an alias stands for each time
_MAX_DIGITS = 100

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str | None] = []  # anchors of the collections that are being read
        self._values: dict[int, int] = {}  # by node: the number of values in it, aliases replaced

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise _error(f"*{event.anchor} contains itself", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _error(f"tags such as {event.tag} are not supported", event.start_mark)
        if len(self._open) >= _MAX_DEPTH:
            raise _error(f"more than {_MAX_DEPTH} levels", event.start_mark)
        self._open.append(event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        if node is None:
            return None
        if isinstance(node, yaml.ScalarNode):
            digits = len(node.value) if node.tag in (f"{_TAG}int", f"{_TAG}float") else 0
            if digits > _MAX_DIGITS:
                raise _error(f"a number of {digits} characters, at most {_MAX_DIGITS} are allowed", event.start_mark)
            inner: list[yaml.Node] = []
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            inner = list(node.value)
        self._values[id(node)] = total = 1 + sum(self._values[id(part)] for part in inner)
        if total > _MAX_VALUES or len(self._values) > _MAX_VALUES:
            raise _error(f"more than {_MAX_VALUES:,} values", event.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Reads a mapping; its keys are text, except the merge key `<<`.

        A repeated key is an error: by default the last one wins silently.
        """
        node = super().compose_mapping_node(anchor)
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key is a list or a mapping", key.start_mark)
            if key.value in own:
                raise _error(f"the key {shown(key.value)} occurs twice", key.start_mark)
            if key.tag == f"{_TAG}merge":
                merged |= _merged(value)
            else:
                key.tag = f"{_TAG}str"
                own[key.value] = key, value
        node.value = list((merged | own).values())
        return node


def _merged(node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Returns the keys and values that `<<: node` merges in, by key; earlier mappings take precedence."""
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for mapping in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(mapping, yaml.MappingNode):
            raise _error("<< needs a mapping, or a list of mappings", mapping.start_mark)
        found |= {key.value: (key, value) for key, value in mapping.value}
    return found


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.2 are added below


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would not read back as text."""


def _resolve(kind: str, pattern: re.Pattern[str], first: str) -> None:
    for reader in (_Loader, _Dumper):
        reader.add_implicit_resolver(f"{_TAG}{kind}", pattern, list(first))


_resolve("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF")
_resolve("int", _INT, "-+0123456789")
_resolve("float", _FLOAT, "-+.0123456789")
_resolve("merge", re.compile(r"<<$"), "<")
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_constructor(f"{_TAG}int", lambda loader, node: int(node.value))  # by default, 010 is 8


def read(path: str | Path) -> dict[str, Any]:
    """Reads the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or does not hold a mapping.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: is too large for a configuration (more than {_MAX_BYTES // 1024} KiB)")
        values = _parsed(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({_reason(error)})") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: must hold a mapping of sections, holds a {type(values).__name__}")
    return values or {}


def suite_of_file(path: str | Path) -> dict[str, Any]:
    """Reads a suite of attacks and corruptions; one without a `name` gets that of its file.

    Raises:
        ConfigError: as `read`.
    """
    named = re.sub(r"[^A-Za-z0-9_.+-]", "-", Path(path).stem).lstrip("_.+-")[:64]
    return {"name": named or "suite", **read(path)}


def dump(values: Mapping[str, Any]) -> str:
    """Returns plain values as YAML that `read` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies `section.key=value` overrides to the values, in place, and returns them.

    Raises:
        ConfigError: an override has another form.
    """
    for override in overrides:
        _apply(values, override)
    return values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def _apply(values: dict[str, Any], override: str) -> None:
    remember(override)  # an error may quote it
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{shown(override)}: an override must have the form section.key=value")
    try:
        value = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {shown(text)} is not a YAML value ({_reason(error)})") from None
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if inner is None:
            inner = values[parent] = {}
        elif not isinstance(inner, dict):
            raise ConfigError(f"{key}: '{parent}' holds {shown(inner)}, not a mapping")
        values = inner
    values[last] = value


def _parsed(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return one_line(error)
