"""A journal: finished pieces of a long work, line by line on disk, so that a stopped work can continue."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from glr_dist.files import write_atomically


class Journal:
    """Entries of one work, JSON values with a digest each; the first line is the work's fingerprint.

    Args:
        fingerprint: digest of everything that determines the entries.
        file: where entries are appended, open for writing.
    """

    def __init__(self, fingerprint: str, file: TextIO) -> None:
        self._fingerprint, self._file = fingerprint, file

    @classmethod
    def open(cls, path: Path, fingerprint: str, fits: Callable[[Any], bool]) -> tuple[Journal, list[Any]]:
        """Opens the journal at `path`; returns it and its entries. A damaged line is ignored and removed.

        Args:
            path: the journal's file.
            fingerprint: digest of everything that determines the entries; entries of another one are dropped.
            fits: returns whether an entry belongs to this work.

        Raises:
            OSError: the file cannot be written.
        """
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        entries = (
            [each for each in _readable(lines[1:], fingerprint) if fits(each)] if lines[:1] == [fingerprint] else []
        )
        if len(lines) > 1 and lines[0] != fingerprint:
            print(f"warning: {path}: belongs to other settings or another network; starting anew", file=sys.stderr)
        content = [fingerprint + "\n", *(line_of(fingerprint, entry) for entry in entries)]
        write_atomically(path, "".join(content).encode())
        return cls(fingerprint, path.open("a")), entries

    def append(self, entry: Any) -> None:
        """Appends an entry, and hands it to the system."""
        self._file.write(line_of(self._fingerprint, entry))
        self._file.flush()

    def remove(self) -> None:
        """Closes and deletes the file."""
        self._file.close()
        Path(self._file.name).unlink()


def line_of(fingerprint: str, entry: Any) -> str:
    """Returns the line of an entry."""
    text = json.dumps(entry)
    return f"{text} {_digest(fingerprint, text)}\n"


def _readable(lines: list[str], fingerprint: str) -> Iterator[Any]:
    """Yields the undamaged entries of a journal's file."""
    for line in lines:
        text, _, digest = line.rpartition(" ")
        if digest == _digest(fingerprint, text):  # else altered, or cut off when the work was stopped
            try:
                yield json.loads(text)
            except ValueError:
                continue


def _digest(fingerprint: str, text: str) -> str:
    return hashlib.sha256(f"{fingerprint} {text}".encode(errors="surrogateescape")).hexdigest()[:32]
