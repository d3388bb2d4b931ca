"""Finds the folder of the data sets, and a user's file or folder."""

from __future__ import annotations

import os
from pathlib import Path

from glr_dist.config import Data
from glr_dist.errors import ConfigError
from glr_dist.text import one_line


def root_of(data: Data) -> Path:
    """Returns the absolute folder of the data: `data.root`, else $GLR_DATA, else ./data.

    Raises:
        ConfigError: it starts with the home of an unknown user.
    """
    root = Path(data.root or os.environ.get("GLR_DATA") or "data")
    try:
        return root.expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(f"data.root: {str(root)!r} is not a folder ({one_line(error)})") from None


def located(data: Data, code: str | None) -> Data:
    """Returns the section with absolute paths, for loaders and for processes with another working directory.

    `data.path` is looked for in the folder of the data, the working directory and the folder of the configuration.

    Args:
        data: the section.
        code: the folder of the configuration.

    Raises:
        ConfigError: no such file or folder exists; the message lists where it was looked for.
    """
    changed = {"root": str(root_of(data))}
    if data.path is not None:
        changed["path"] = str(_found(data.path, [root_of(data), Path.cwd(), *([Path(code)] if code else [])]))
    return data.model_copy(update=changed)


def _found(named: str, folders: list[Path]) -> Path:
    try:
        paths = list(dict.fromkeys((folder / Path(named).expanduser()).absolute() for folder in folders))
        found = next((path for path in paths if path.exists()), None)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"data.path: {named!r} is not a path ({one_line(error)})") from None
    if found is None:
        raise ConfigError(f"data.path: {named!r} does not exist; looked for {' and '.join(map(str, paths))}")
    return found
