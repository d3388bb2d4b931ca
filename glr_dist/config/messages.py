"""Validates a section. An error is one line: the field, the value, and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from glr_dist.errors import ConfigError
from glr_dist.redaction import remember
from glr_dist.text import hint, shown

S = TypeVar("S", bound=BaseModel)

_WORDS = {  # of pydantic, as patterns, and of YAML
    r"a valid dictionary( or instance of \w+)?": "a mapping",
    "a valid tuple": "a list",
    ", unable to parse string as an? (integer|number)": "",
    "a valid boolean, unable to interpret input": "true or false",
}


def build(section: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Validates the values of a section.

    Args:
        section: the pydantic model.
        values: the user's values.
        where: prefix of the field's name in an error.

    Raises:
        ConfigError: one line about the first error.
    """
    remember(values)  # an error may quote a value that contains a password
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_message(section, error, values, where)) from None


def _message(section: type[BaseModel], error: ValidationError, values: Mapping[str, Any], where: str) -> str:
    first = error.errors()[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
        return str(cause)
    begin = _field(section, first["loc"], values)[0]
    # Each branch of a union reports errors. The branch that reaches deepest into the values is the intended one.
    places = [_field(section, e["loc"], values)[0] for e in error.errors()]
    deepest = max((place for place in places if place.startswith(f"{begin}.")), key=len, default=begin)
    first = error.errors()[places.index(deepest)]
    field, known = _field(section, first["loc"], values)
    name = field.rpartition(".")[2]
    field = where + field
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key; {_nearest(section, known, name, where)}"
    if first["type"] == "missing":
        return f"{field}: is missing"
    if first["type"].startswith("union_tag"):  # the field `name` decides which section of the union it is
        if first["type"] == "union_tag_not_found":
            return f"{field}.name: is missing"
        field, value, allowed = f"{field}.name", first["ctx"]["tag"], first["ctx"]["expected_tags"]
        expected = allowed
    else:
        alternatives = [e for e, place in zip(error.errors(), places, strict=True) if place == deepest]
        allowed = " or ".join(dict.fromkeys(_allowed(e) for e in alternatives))
        value, expected = first["input"], first.get("ctx", {}).get("expected", "")
    suggestion = ""
    if expected and isinstance(value, str):
        options = [option.strip("' ") for option in expected.replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(value, options, 1)
        suggestion = f"; did you mean '{near[0]}'?" if near else ""
    return f"{field}: {shown(value)} is not allowed: {allowed}{suggestion}"


def _nearest(root: type[BaseModel], known: type[BaseModel], name: str, where: str) -> str:
    """Suggests fields for an unknown key: those of its name in other sections, else the most similar in its own."""
    elsewhere = list(dict.fromkeys(field for field in _fields(root) if field.rpartition(".")[2] == name))[:3]
    if elsewhere:
        return f"did you mean {' or '.join(repr(where + field) for field in elsewhere)}?"
    return hint(name, known.model_fields)


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all fields of a section, and of the arguments of its defaults."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models(field.annotation):
            yield from _fields(inner, f"{prefix}{name}.")
        if isinstance(field.default, BaseModel):
            yield from (f"{prefix}{name}.{argument}" for argument in field.default.model_extra or {})


def _field(section: type[BaseModel], place: Sequence[int | str], values: Any) -> tuple[str, type[BaseModel]]:
    """Returns the dotted name of the field at a place, and the section that holds it.

    A union reports one error per branch and puts the branch's name into the place, which is noise for a reader.
    """
    fields: list[str] = []
    known = [section]
    for part in place:
        owner = next((model for model in known if part in model.model_fields), None)
        if isinstance(part, int):
            fields.append(str(part))
        elif owner is not None:
            fields.append(part)
            known = _models(owner.model_fields[part].annotation)
        elif tagged := [model for model in known if part in (_tag(model), model.__name__)]:
            known = tagged
        elif str(part).startswith("literal["):  # the branch of a fixed word
            continue
        elif known:  # an unknown key
            fields.append(shown(part)[1:-1])
            break
        elif isinstance(values, Mapping) and part in values:  # a site-name pattern, or an epoch
            fields.append(shown(part)[1:-1])
        if isinstance(values, Mapping):
            values = values.get(part, values)
    return ".".join(fields), known[0] if known else section


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tag(model: type[BaseModel]) -> Any:
    """Returns the value of the field `name` that selects this section in a union."""
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _allowed(error: Any) -> str:
    """Returns the values that pydantic allows, in the words of a YAML file."""
    if error["type"] == "too_short" and error["ctx"]["field_type"] == "Dictionary":
        return "a non-empty mapping"
    text: str = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    for pydantic, yaml in _WORDS.items():
        text = re.sub(pydantic, yaml, text)
    return text
