"""Files: the cache folder, and atomic writes.

A file is complete or absent, because it is written beside its place and then renamed.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder of what can be computed again: $GLR_CACHE, else glr_dist in $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("GLR_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glr_dist"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file. A crash at any time leaves the old file, no file, or the complete new one.

    Raises:
        OSError: the disk is full or the folder cannot be written; it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # left by a killed process, or a link whose target is not ours to write
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # of a full disk
            error.filename = str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
