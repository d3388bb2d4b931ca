"""Identifies the software of a process: a node with different software would silently compute different parameters."""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from glr_dist.errors import ClusterError

_LIBRARIES = ("torch", "numpy", "ray")
_SOURCE = "source of glr_dist"

Software = Mapping[str, str]  # version of each part


@cache
def software() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that affect results, and a digest of this package's files."""
    return {"Python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}, _SOURCE: _digest()}


def node_name() -> str:
    """Returns the name of this machine."""
    return socket.gethostname()


def check_same(node: str, found: Software, expected: Software) -> None:
    """Checks that a node runs the same software as the driver.

    Args:
        node: the name of the node.
        found: `software()` on the node.
        expected: `software()` of the driver.

    Raises:
        ClusterError: the software differs; the message names the node and the differences.
    """
    differing = [
        f"{name} {found.get(name, 'unknown')} instead of {wanted}"
        for name, wanted in expected.items()
        if found.get(name) != wanted
    ]
    if differing:
        different = "runs different software, which may give different results"
        raise ClusterError(f"node {node} {different}: {', '.join(differing)}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _digest() -> str:
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package).as_posix()}\0".encode())
        found.update(path.read_bytes() + b"\0")
    return found.hexdigest()[:12]
