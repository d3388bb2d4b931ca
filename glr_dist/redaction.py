"""Secrets that this process knows, and their removal from messages.

A message may quote a URI in any form: as it is, escaped, or cut out of a longer text. So the known secrets are
replaced wherever they appear, instead of only looking for URIs in the message.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from glr_dist.uris import secrets_of, without_credentials

_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SHORTEST = 4  # shorter passwords are replaced only as part of their URI: they may be part of any word
_seen: dict[str, str] = {}  # texts with secrets -> their replacements


def remember(values: Any) -> None:
    """Remembers the secrets of all URIs in a text, or in the texts of nested mappings and sequences."""
    for text in _texts(values):
        if secrets := secrets_of(text):
            _seen.update(_replacements(text, secrets))


def redact(text: str) -> str:
    """Returns a text without the secrets that were remembered, or that are in the environment."""
    replacements = dict(_seen)
    for name in _VARIABLES:
        if secret := os.environ.get(name):
            replacements |= _replacements("", {secret})
    if secrets := secrets_of(uri := os.environ.get("MLFLOW_TRACKING_URI", "")):
        replacements |= _replacements(uri, secrets)
    for written in sorted(replacements, key=len, reverse=True):
        text = text.replace(written, replacements[written])
    # A URI that came from elsewhere, as one word.
    return " ".join(without_credentials(word) if "@" in word else word for word in text.split(" "))


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(values, Iterable) and not isinstance(values, bytes):
        for value in values:
            yield from _texts(value)


def _replacements(text: str, secrets: set[str]) -> dict[str, str]:
    """Returns what to replace, in all forms in which a library may write it."""
    found = {form: without_credentials(text) for form in _forms(text)} if text else {}
    for secret in secrets:
        for form in _forms(secret) | _forms(unquote(secret)) | _forms(unquote_plus(secret)):
            if len(form) >= _SHORTEST:
                found[form] = "***"
    return found


def _forms(text: str) -> set[str]:
    escaped = {text, repr(text)[1:-1], json.dumps(text)[1:-1], quote(text), quote(text, safe=""), quote_plus(text)}
    return escaped | {" ".join(form.split()) for form in escaped}
