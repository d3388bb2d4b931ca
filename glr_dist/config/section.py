"""The base of all sections of a configuration, which are frozen and refuse unknown keys, and shared types."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

from glr_dist.imported import is_import_path


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not a boolean")
    return value


def one_of(*groups: Collection[str], own: bool = False) -> BeforeValidator:
    """Returns a validator that accepts the names in `groups`, such as those of a registry, as they are at that time.

    Args:
        *groups: the names.
        own: accept an import path, `package.module:name`, too.
    """

    def check(value: Any) -> Any:
        names = [name for group in groups for name in group]
        if not (isinstance(value, str) and value in names) and not (own and is_import_path(value)):
            expected = _alternatives(names)
            raise PydanticKnownError(
                "literal_error", {"expected": f"{expected}, or your own package.module:name" if own else expected}
            )
        return value

    return BeforeValidator(check)


def _alternatives(names: Collection[str]) -> str:
    *others, last = [f"'{name}'" for name in names]
    return f"{', '.join(others)} or {last}" if others else last


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_not_boolean)]


Count = Annotated[int, BeforeValidator(_not_boolean), Field(ge=1, le=10**9)]


Seconds = Annotated[Positive, Field(le=1e9)]


Fraction = Annotated[float, Field(gt=0, lt=1)]


Scale = Positive | Annotated[dict[str, Positive], Field(min_length=1)]


class Named(BaseModel):
    """A torch class by name. All other keys are arguments of the class, which are checked when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Any]
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys except `name`."""
        return dict(self.__pydantic_extra__)


def name_of(value: Any) -> Any:
    """Returns the `name` of a section, or of the mapping that it is built from."""
    return value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
