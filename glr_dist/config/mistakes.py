"""Values -> a section; what is wrong with them is one line: the field, the value, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from glr_dist.errors import ConfigError

S = TypeVar("S", bound=BaseModel)


def build(section: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Validates `values`; a mistake becomes a one-line ConfigError.

    Args:
        section: the pydantic model.
        values: what the user gave.
        where: put before the field's name in an error.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(section, error, values, where)) from None


def _one_line(section: type[BaseModel], error: ValidationError, values: Mapping[str, Any], where: str) -> str:
    first = error.errors()[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
        return str(cause)
    begin = _field(section, first["loc"], values)[0]
    # Of what the branches of a union say, that which goes deepest into the values is meant.
    places = [_field(section, e["loc"], values)[0] for e in error.errors()]
    deepest = max((place for place in places if place.startswith(f"{begin}.")), key=len, default=begin)
    first = error.errors()[places.index(deepest)]
    field, known = _field(section, first["loc"], values)
    field = where + field
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field.rpartition(".")[2], known.model_fields, 1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known.model_fields)}"
        return f"{field}: unknown key{hint}"
    if first["type"] == "missing":
        return f"{field}: is missing"
    about = [e for e, place in zip(error.errors(), places, strict=True) if place == deepest]
    allowed = " or ".join(dict.fromkeys(_said(e) for e in about))
    value, expected = first["input"], first.get("ctx", {}).get("expected", "")
    if first["type"].startswith("union_tag"):  # which of several sections it is, is said by its key `name`
        if first["type"] == "union_tag_not_found":
            return f"{field}.name: is missing"
        field, value, allowed = f"{field}.name", first["ctx"]["tag"], first["ctx"]["expected_tags"]
        expected = allowed
    hint = ""
    if expected and isinstance(value, str):
        options = [o.strip("' ") for o in expected.replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(value, options, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{field}: {value!r} is not allowed: {allowed}{hint}"


def _field(section: type[BaseModel], place: Sequence[int | str], values: Any) -> tuple[str, type[BaseModel]]:
    """The dotted name of the field at a place, and the section that it is in.

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
        elif tagged := [model for model in known if part == _tag(model)]:
            known = tagged
        elif known:  # an unknown key
            fields.append(part)
            break
        elif isinstance(values, Mapping) and part in values:  # of a mapping of sites, or of epochs
            fields.append(part)
        if isinstance(values, Mapping):
            values = values.get(part, values)
    return ".".join(fields), known[0] if known else section


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tag(model: type[BaseModel]) -> Any:
    """What the key `name` of a section holds, where it says which of several sections it is."""
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _said(error: Any) -> str:
    """What pydantic says is allowed, in the words of a YAML file."""
    if error["type"] == "too_short" and error["ctx"]["field_type"] == "Dictionary":
        return "a mapping that is not empty"
    text: str = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return text.replace("a valid dictionary", "a mapping")
