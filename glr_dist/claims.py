"""Claims: the exclusive right of one process to write to a folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import weakref
from datetime import datetime, timezone
from pathlib import Path

from glr_dist.errors import UserError


class ClaimedError(UserError):
    """Another process is using the folder."""


class Claim:
    """Exclusive right of this process to write to a folder; a context manager that releases it.

    The right is a lock on a hidden file, which the system releases when the process ends, however it ends: the folder
    of a dead process can be claimed at once. The file names the owner: host, process and start time. A process may
    claim a folder more than once, and holds it until it has released each claim.

    Attributes:
        path: the absolute folder.
    """

    def __init__(self, path: Path, lock: Path) -> None:
        self.path = path
        self._release = weakref.finalize(self, _release, lock)

    def release(self) -> None:
        """Releases the claim; a second call does nothing."""
        self._release()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_held: dict[Path, tuple[int, int]] = {}  # lock file -> its descriptor, and the number of claims on it


def claim(folder: str | Path, purpose: str = "run") -> Claim:
    """Claims a folder for this process; creates it if it is missing.

    Args:
        folder: the folder.
        purpose: what for; claims for different purposes do not exclude each other.

    Raises:
        ClaimedError: another process holds the claim; the message names it.
        OSError: the folder cannot be written.
    """
    path = Path(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    lock = path.resolve() / f".{purpose}.claim"
    if lock in _held:
        descriptor, count = _held[lock]
        _held[lock] = descriptor, count + 1
        return Claim(path, lock)
    descriptor = _locked(path, lock)
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": began})
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, owner.encode())
    except OSError:  # a full disk
        os.close(descriptor)
        raise
    _held[lock] = descriptor, 1
    return Claim(path, lock)


def _locked(path: Path, lock: Path) -> int:
    """Opens and locks the claim file; returns its descriptor."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(descriptor, lock):
                return descriptor
        except BlockingIOError:
            owner = _described(os.read(descriptor, 1000).decode(errors="replace"))
            os.close(descriptor)
            raise ClaimedError(f"{path}: is in use by {owner}; wait for it, or choose another folder") from None
        os.close(descriptor)  # its owner released the claim, and removed the file, while this process opened it


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def is_claimed(folder: str | Path, purpose: str = "run") -> bool:
    """True if a process holds the claim of a folder. Nothing is written."""
    lock = Path(folder).resolve() / f".{purpose}.claim"
    if lock in _held:
        return True
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def claim_new(parent: str | Path, stem: str, purpose: str = "run") -> Claim:
    """Makes and claims the next free folder `parent/STEM-NUMBER`; two processes never get the same one.

    Raises:
        OSError: the folder cannot be made.
    """
    number = max(_numbers(Path(parent), stem), default=0)
    while True:
        number += 1
        path = Path(parent).absolute() / f"{stem}-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return claim(path, purpose)


def newest(parent: str | Path, stem: str) -> Path | None:
    """Returns the folder `parent/STEM-NUMBER` with the highest number, or None."""
    number = max(_numbers(Path(parent), stem), default=0)
    return Path(parent).absolute() / f"{stem}-{number}" if number else None


def _numbers(parent: Path, stem: str) -> list[int]:
    if not parent.is_dir():
        return []
    ends = [path.name[len(stem) + 1 :] for path in parent.iterdir() if path.name.startswith(f"{stem}-")]
    return [int(end) for end in ends if end.isascii() and end.isdecimal()]


def _release(lock: Path) -> None:
    if lock not in _held:
        return
    descriptor, count = _held.pop(lock)
    if count > 1:
        _held[lock] = descriptor, count - 1
        return
    if _same(descriptor, lock):
        lock.unlink()
    os.close(descriptor)


def _described(owner: str) -> str:
    try:
        known = json.loads(owner)
        return f"process {known['pid']} on {known['host']} since {known['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
