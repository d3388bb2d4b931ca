"""Detects the loss of a cluster that this process has joined: of its GCS, or of the raylet on this machine.

Ray's core ends a process that has lost its raylet silently, and one that has lost its GCS after a minute.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_INTERVAL = 2.0  # seconds between two connections to a GCS that accepts them
_RETRY = 0.5  # seconds to the next connection after one that was refused
_TIMEOUT = 1.0  # seconds that the GCS has to accept a connection
_REFUSALS = 5  # consecutive refused connections after which the GCS is considered dead
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"  # seconds; set where a GCS may be restarted without loss


class Gcs:
    """Watches the GCS of a cluster by connecting to it.

    Only refused connections count: a busy or unreachable GCS does not answer, but does not refuse either.

    Args:
        address: HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        self._address, self._refusals, self._next = address, 0, 0.0
        patience = os.environ.get(_RECONNECT, "")
        self._limit = max(_REFUSALS, round(int(patience) / _RETRY) if patience.isdecimal() else 0)

    def death(self) -> str | None:
        """Returns how the GCS died; None if it did not."""
        if time.monotonic() >= self._next and self._refusals < self._limit:
            self._refusals = self._refusals + 1 if self._refuses() else 0
            self._next = time.monotonic() + (_RETRY if self._refusals else _INTERVAL)
        if self._refusals < self._limit:
            return None
        return f"the head of the cluster at {self._address} is gone (connection refused {self._refusals} times)"

    def _refuses(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False


def raylet_death(pid: int) -> Callable[[], str | None]:
    """Returns a function that returns how the raylet with this process id died; None if it did not."""
    if not hasattr(os, "pidfd_open"):
        return lambda: None
    try:
        waiting = select.poll()
        waiting.register(os.pidfd_open(pid), select.POLLIN)  # open until this process ends
    except OSError:
        return lambda: None
    return lambda: "Ray's raylet process on this machine has ended" if waiting.poll(0) else None


def process_at(path: str) -> int | None:
    """Returns the id of the process at the other end of this process's connections to a Unix socket."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as own:
            if own.family == socket.AF_UNIX and own.getpeername() == path:
                peer = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)
                return int.from_bytes(peer, sys.byteorder) or None
    return None
