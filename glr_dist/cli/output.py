"""Lines that a command prints: a name and its value, in two columns."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

_NAMES = 19  # columns of the names: as long as validation_accuracy


def show(name: str, value: Any) -> None:
    """Prints a line immediately, cut to the width of a terminal."""
    line = f"{name:<{_NAMES}}  {figure(value)}"
    if sys.stdout.isatty() and len(line) > (columns := shutil.get_terminal_size().columns):
        line = f"{line[: columns - 1]}…"
    print(line, flush=True)


def show_whole(name: str, value: str | Path) -> None:
    """Prints a line that is never shortened, such as a path or a command."""
    print(f"{name:<{_NAMES}}  {value}", flush=True)


def next_command(name: str, path: Path) -> str:
    """Returns a command of glr-dist on a path, ready to be pasted into a shell in this folder."""
    near = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return f"glr-dist {name} {shlex.quote(near)}"


def figure(value: Any) -> str:
    """Formats a value for people; a float has four significant digits, or none after the point from 10,000 on."""
    if isinstance(value, list):
        return ", ".join(map(figure, value))
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
