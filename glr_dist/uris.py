"""URIs of servers and databases, taken apart: their credentials, and the server that they name.

The parser follows RFC 3986 for `http` and `https`, and SQLAlchemy for databases, whose passwords may hold `/` and `?`.
`urllib.parse.urlsplit` refuses some passwords with brackets, so it cannot do this.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote_plus

_PORTS = {"http": "80", "https": "443"}
# A query parameter is a credential if its name contains one of the first, or is one of the second.
_SECRET_WORDS = ("pass", "pwd", "secret", "token", "key", "credential", "auth", "sig", "odbc_connect")
_USERS = ("user", "username", "uid")


class _Parts(NamedTuple):
    """The parts of a text with a URI; joined, they are the text.

    Attributes:
        scheme: everything before `://`, with the words before the URI if there are any.
        userinfo: the credentials before the host with the `@`; empty if there are none.
        host: host and port.
        tail: path, query and fragment, and anything after the URI.
    """

    scheme: str
    userinfo: str
    host: str
    tail: str


def without_credentials(text: str) -> str:
    """Returns a text without the credentials of the URIs in it: `https://me:secret@host` becomes `https://host`.

    Removes user names, passwords and tokens before the host, and query parameters that hold one.
    """
    return _clean(text, set())


def secrets_of(text: str) -> set[str]:
    """Returns the passwords and tokens of the URIs in a text, as they are written there."""
    secrets: set[str] = set()
    _clean(text, secrets)
    return secrets - {""}


def server_of(uri: str) -> tuple[str, str, str]:
    """Returns scheme, host and port of the server that a URI names; lower case, with the scheme's default port."""
    parts = _split(uri)
    scheme = parts.scheme.lower()
    host, port = _host_and_port(parts.host)
    return scheme, host.lower(), port or _PORTS.get(scheme, "")


def _clean(text: str, secrets: set[str]) -> str:
    """Returns the text without credentials; adds the passwords and tokens to `secrets`."""
    if "://" not in text:
        return text
    parts = _split(text)
    user, colon, password = parts.userinfo.removesuffix("@").partition(":")
    if colon or _is_http(parts.scheme):  # a name alone is a token, except in the URI of a database
        secrets.add(password if colon else user)
    return f"{parts.scheme}://{_clean_rest(parts.host + parts.tail, secrets)}"


def _split(text: str) -> _Parts:
    """Splits a text at the first `://`."""
    scheme, _, rest = text.partition("://")
    authority, tail = _cut(rest, "/?#")
    user, at, host = authority.rpartition("@")
    if _is_port(_host_and_port(host)[1]) and (at or ":" not in host or _is_http(scheme)):
        return _Parts(scheme, user + at, host, tail)
    # Not a port, so a password that contains one of `/?#`, whose host follows the last `@`. In the URI of a database,
    # a password may begin like a port.
    port = _is_port(_host_and_port(host)[1])
    user, at, _ = (_cut(rest, "?")[0] if port else rest).rpartition("@")
    if at:
        host, tail = _cut(rest.removeprefix(user + at), "/?#&")
        return _Parts(scheme, user + at, host, f"?{tail[1:]}" if tail.startswith("&") else tail)
    if port:
        return _Parts(scheme, "", authority, tail)
    host = authority.partition(":")[0]  # `http://user:password`: the host is missing
    return _Parts(scheme, rest.removeprefix(host), host, "")


def _is_http(scheme: str) -> bool:
    return scheme.lower().endswith(("http", "https"))  # there may be words before it


def _cut(text: str, characters: str) -> tuple[str, str]:
    """Cuts a text before the first of some characters."""
    end = min((text.index(c) for c in characters if c in text), default=len(text))
    return text[:end], text[end:]


def _host_and_port(authority: str) -> tuple[str, str]:
    """Separates a port from a host, which may be an IPv6 address in brackets."""
    bracket = authority.find("]") + 1 if authority.startswith("[") else 0
    host, colon, port = authority[bracket:].partition(":")
    return authority[:bracket] + host, port if colon else ""


def _is_port(text: str) -> bool:
    return text == "" or (text.isascii() and text.isdecimal())


def _clean_rest(text: str, secrets: set[str]) -> str:
    """Cleans what follows the user: the query, a fragment that looks like one, and further URIs."""
    path, rest = _cut(text, "?#")
    if "://" in path or not rest:
        return _clean(text, secrets)
    query, fragment = _cut(rest, "#") if rest[0] == "?" else ("", rest)
    kept, secret = _clean_parameters(query[1:], secrets)
    if secret and fragment:  # it may be the end of the last secret
        secrets |= {fragment[1:], rest.rpartition("=")[2]}
        fragment = ""
    marked, _ = _clean_parameters(fragment[1:], secrets)
    return path + (kept and f"?{kept}") + (marked and f"#{marked}")


def _clean_parameters(query: str, secrets: set[str]) -> tuple[str, bool]:
    """Returns the parameters that are not credentials, and whether the last one was a secret."""
    kept, secret = [], False
    for parameter in query.split("&"):
        name, equals, value = parameter.partition("=")
        folded = unquote_plus(name).lower()
        # A part without a name follows a secret that contains a `&`, and belongs to it.
        secret = any(word in folded for word in _SECRET_WORDS) if equals else secret
        if secret:
            secrets.add(value if equals else parameter)
        elif not equals or folded not in _USERS:
            plain = unquote_plus(value)
            cleaned = _clean(plain, secrets)
            kept.append(parameter if cleaned == plain else f"{name}={quote(cleaned, safe=':/')}")
    return "&".join(kept), secret
