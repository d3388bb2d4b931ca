"""Checkpoints: atomic, checked by a digest, and loaded without unpickling arbitrary code.

A checkpoint is a plain file of `torch.save`, which `torch.load(path, weights_only=True)` reads. The SHA-256 of its
bytes stands in the comment at the end of the zip archive, which torch ignores.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from glr_dist.errors import CheckpointError
from glr_dist.files import write_atomically
from glr_dist.glr import GLR
from glr_dist.runs import checkpoints_in
from glr_dist.text import one_line

_COMMENT = b"glr_dist-checkpoint 2 "
_COMMENT_LENGTH = len(_COMMENT) + 64
_FIRST_FORMAT = b"glr_dist-checkpoint 1 "  # up to 0.4.0: this, the digest and a line end before the archive


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint of tensors and plain values.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older file of this name stays as it was.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    archive = buffer.getvalue()
    comment = _COMMENT + hashlib.sha256(archive).hexdigest().encode()
    # The last two bytes of a zip archive without a comment are the comment's length, 0.
    write_atomically(path, archive[:-2] + struct.pack("<H", len(comment)) + comment)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns the state of a checkpoint.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or not a checkpoint.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: is not a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        archive = io.BytesIO(_verified(path, content))
        state: dict[str, Any] = torch.load(archive, map_location=device, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # the kinds of torch's errors differ from version to version
        reason = one_line(error, 200)
        raise CheckpointError(
            f"{path}: holds no plain state, or one that would run code when loaded ({reason})"
        ) from None
    return state


def _verified(path: Path, content: bytes) -> bytes:
    """Verifies the digest of a checkpoint file; returns the archive without the digest."""
    if content.startswith(_FIRST_FORMAT):
        header, _, archive = content.partition(b"\n")
        digest = header.removeprefix(_FIRST_FORMAT)
    else:
        comment = content[-_COMMENT_LENGTH:]
        if not comment.startswith(_COMMENT):
            raise CheckpointError(f"{path}: is not a whole checkpoint of glr_dist (its digest is missing)")
        archive = content[: -_COMMENT_LENGTH - 2] + b"\0\0"
        digest = comment.removeprefix(_COMMENT)
    if hashlib.sha256(archive).hexdigest().encode() != digest:
        raise CheckpointError(f"{path}: is truncated or altered (its digest does not match)")
    return archive


# ---------------------------------------------------------------- restoring


def restore_network(net: GLR, state: Mapping[str, Any], path: Path) -> None:
    """Loads the parameters and noise scales of a checkpoint into a network.

    Raises:
        CheckpointError: the checkpoint belongs to another network.
    """
    try:
        net.load_state_dict(state["network"])
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: belongs to another network ({one_line(error)})") from None


def restore_optimizer(optimizer: Optimizer, schedule: LRScheduler | None, state: Mapping[str, Any], path: Path) -> None:
    """Loads the state of a checkpoint into the optimizer and its schedule.

    Raises:
        CheckpointError: the checkpoint belongs to another optimizer or schedule.
    """
    try:
        before = _keys(optimizer)
        optimizer.load_state_dict(state["optimizer"])
        if _keys(optimizer) != before:
            raise ValueError("its options differ")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for name, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"the shape of '{name}' differs")
        if (schedule is None) != (state["schedule"] is None):
            raise ValueError("only one of the two has a learning-rate schedule")
        if schedule is not None:
            schedule.load_state_dict(state["schedule"])
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: belongs to another optimizer or schedule ({one_line(error)})") from None


def _keys(optimizer: Optimizer) -> list[set[str]]:
    return [set(group) - {"initial_lr"} for group in optimizer.param_groups]


# ---------------------------------------------------------------- the folder


def name_of(epoch: int) -> str:
    """Returns the file name of the state after `epoch` epochs."""
    return f"epoch-{epoch:05d}.pt"


def listed(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, newest first."""
    found = checkpoints_in(folder)
    return [found[epoch] for epoch in sorted(found, reverse=True)]


def newest(folder: Path, device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any], list[str]]:
    """Returns the file and state of the newest whole checkpoint, and one line about each damaged newer one.

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


def load_newest(folder: Path, device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any]]:
    """Returns the file and state of the newest checkpoint, never of an older one: that would be another network.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    found = listed(folder)
    if not found:
        raise CheckpointError(f"{folder}: holds no checkpoint")
    return found[0], load(found[0], device)


def prune(folder: Path, keep: int, epoch: int, best: int | None = None) -> None:
    """Deletes old checkpoints; keeps that of epoch `best` and the last `keep` up to `epoch`, the one just written.

    A stray file of a later epoch is neither counted nor deleted.
    """
    found = checkpoints_in(folder)
    for old in sorted((number for number in found if number <= epoch), reverse=True)[keep:]:
        if old != best:
            found[old].unlink(missing_ok=True)


def digest(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 over names, types, shapes and bytes of parameters and buffers, in order of name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
