"""Crashes at a chosen write to disk, for tests that resume from there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Crash(BaseException):
    """The end of the process, as far as the code under test can see."""


@contextmanager
def crash_at(number: int, *, deletions: bool = False) -> Iterator[None]:
    """Raises `Crash` at a write to disk.

    Args:
        number: number of the write, from 0.
        deletions: count deletions of checkpoints too.
    """
    fsync, unlink, left = os.fsync, Path.unlink, number

    def count() -> None:
        nonlocal left
        if left == 0:
            raise Crash
        left -= 1

    def counted_fsync(descriptor: int) -> None:
        count()
        fsync(descriptor)

    def counted_unlink(path: Path, **options: bool) -> None:
        if path.suffix == ".pt":
            count()
        unlink(path, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", counted_fsync)
        if deletions:
            patched.setattr(Path, "unlink", counted_unlink)
        yield
