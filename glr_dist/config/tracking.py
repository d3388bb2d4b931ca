"""The section `tracking`: where a run is tracked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, field_validator, model_validator

from glr_dist.config.section import Section
from glr_dist.errors import ConfigError
from glr_dist.redaction import remember
from glr_dist.uris import without_credentials

_LONGEST_NAME = 250  # characters that MLflow accepts


def _without_secrets(value: str) -> str:
    remember(value)
    return without_credentials(value)


class Tracking(Section):
    """Tracking of a run. The run's folder is always complete; tracking uploads a copy.

    Credentials in the URI (`https://user:password@host`) are used but never written: JSON and YAML dumps contain the
    URI without them. Credentials in the URIs of tags are removed when the tags are read.
    """

    kind: Literal["auto", "none", "mlflow"] = Field(
        "auto", description="auto: mlflow if tracking.uri or $MLFLOW_TRACKING_URI is set, else none"
    )
    uri: Annotated[str, PlainSerializer(without_credentials, when_used="json")] | None = Field(
        None,
        min_length=1,
        repr=False,
        description="server or database (default: $MLFLOW_TRACKING_URI, else the file mlflow.db in the current folder)",
    )
    experiment: str = Field("glr_dist", min_length=1, max_length=500)
    tags: dict[str, Annotated[str, AfterValidator(_without_secrets)]] = Field({}, description="tags of the run")
    register_as: str | None = Field(None, min_length=1, description="register the trained network under this name")

    @model_validator(mode="before")
    @classmethod
    def _from_kind(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @field_validator("uri")
    @classmethod
    def _names_a_server(cls, uri: str | None) -> str | None:
        if uri is not None:
            if "@" in uri and "://" not in uri:  # the message must not quote it
                raise ConfigError(
                    "tracking.uri: has a user but no scheme; write a server as http://USER:PASSWORD@HOST:PORT"
                )
            remember(uri)
        return uri

    @field_validator("experiment")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name.isprintable() or name.strip() in ("", ".", ".."):
            raise ConfigError(f"tracking.experiment: {name!r} cannot be the name of a folder of artifacts")
        return name

    @field_validator("register_as")
    @classmethod
    def _names_a_model(cls, name: str | None) -> str | None:
        if name is not None and (not name.isprintable() or set(name) & set("/:") or name.strip() in ("", ".", "..")):
            raise ConfigError(f"tracking.register_as: {name!r} is not a name; MLflow does not accept '/' and ':' in it")
        return name

    @field_validator("tags")
    @classmethod
    def _have_names(cls, tags: dict[str, str]) -> dict[str, str]:
        for name in tags:
            parts = name.split("/")
            valid = all(c.isalnum() or c in "_-.: /" for c in name) and not {"", ".", ".."} & set(parts)
            if not valid or len(name) > _LONGEST_NAME:
                raise ConfigError(
                    f"tracking.tags: {name!r} is not a name; MLflow accepts letters, digits, '_', '-', '.', ':', ' ' "
                    "and '/' between words"
                )
        return tags
