"""Checkpoints: atomic, checked by a digest, and loaded without unpickling arbitrary code.

A file is one line of text, `glr_dist-checkpoint 1 SHA256`, and then what `torch.save` wrote.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glr_dist.errors import CheckpointError
from glr_dist.files import write_atomically
from glr_dist.text import one_line

_MAGIC = b"glr_dist-checkpoint 1 "
_NAME = re.compile(r"epoch-(\d{5,})\.pt")


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint of tensors and plain values.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older file of this name stays as it was.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    write_atomically(path, _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state of a checkpoint.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or no checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    header, _, payload = content.partition(b"\n")
    if not header.startswith(_MAGIC):
        raise CheckpointError(f"{path}: is no checkpoint of glr_dist")
    if hashlib.sha256(payload).hexdigest().encode() != header.removeprefix(_MAGIC):
        raise CheckpointError(f"{path}: is truncated or altered (its digest does not match)")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:  # torch's own kinds differ from version to version
        reason = one_line(error)
        raise CheckpointError(
            f"{path}: holds no plain state, or one that would run code when loaded ({reason})"
        ) from None
    return state


def name_of(epoch: int) -> str:
    """The file of the state after `epoch` epochs."""
    return f"epoch-{epoch:05d}.pt"


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = _by_epoch(folder)
    return [found[epoch] for epoch in sorted(found, reverse=True)]


def last_epoch(folder: Path) -> int:
    """The epoch of the newest checkpoint of a folder, 0 if it has none."""
    return max(_by_epoch(folder), default=0)


def _by_epoch(folder: Path) -> dict[int, Path]:
    return {int(match[1]): path for path in folder.glob("*.pt") if (match := _NAME.fullmatch(path.name))}


def newest(folder: Path, device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint that is whole: its file, its state, and a line about each damaged one that was passed over.

    Raises:
        CheckpointError: no checkpoint is whole.
    """
    damaged: list[str] = []
    for path in listed(folder):
        try:
            return path, load(path, device), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    raise CheckpointError("; ".join(damaged) or f"{folder}: holds no checkpoint")


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints."""
    for path in listed(folder)[keep:]:
        path.unlink(missing_ok=True)


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of parameters and buffers, in order of name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
