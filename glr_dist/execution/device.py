"""The device of a run, as far as it is known without torch, which takes seconds to import."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from glr_dist.config import Execution
from glr_dist.errors import ConfigError
from glr_dist.text import shown

_DRIVERS = ("libcuda.so.1", "libnvidia-ml.so.1")  # torch counts NVIDIA's GPUs with one of these
_AMD = Path("/dev/kfd")  # through which torch reaches AMD's GPUs, as CUDA devices


def chosen_device(execution: Execution) -> str | None:
    """Returns the configured device; None if `auto` depends on the GPUs of this machine."""
    if execution.device != "auto":
        return execution.device
    return "cpu" if execution.kind in ("layers", "replicas") and not execution.gpus_per_actor else None


def checked_device(device: str, gpus: int) -> str:
    """Returns the device.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        gpus: number of CUDA devices of this machine.

    Raises:
        ConfigError: this machine does not have the device.
    """
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= gpus:
        devices = "1 CUDA device" if gpus == 1 else f"{gpus} CUDA devices"
        raise ConfigError(f"execution.device: {shown(device)} does not exist: this machine has {devices}")
    return device


def known_device(execution: Execution) -> str | None:
    """Returns the device of a run; None if only torch can tell.

    Raises:
        ConfigError: this machine does not have it.
    """
    device = chosen_device(execution)
    if may_have_gpu():
        return device
    return checked_device(device or "cpu", 0)


def may_have_gpu() -> bool:
    """Returns False if torch cannot find a GPU: no driver of one is installed."""
    if not sys.platform.startswith("linux"):
        return sys.platform != "darwin"
    return _AMD.exists() or any(map(_loads, _DRIVERS))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
