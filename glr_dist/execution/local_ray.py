"""Isolates a local Ray: loopback only, its own token and process sessions; keeps its sockets open if it dies."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import _raylet as core
from ray._private import ray_constants, services

_raylet: Any = core  # its type hints omit names that differ between versions of Ray
_LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"
_PIDFD_GETFD = 438  # number of the system call, the same on all architectures
_CRASHES = (b"*** SIG", b"Fatal Python error")  # in the log of a process that crashed


@contextmanager
def local_settings() -> Iterator[None]:
    """Makes `ray.init`, within the context, start a Ray that only this user on this machine can reach.

    - All its ports listen on the loopback interface only, as on systems where Ray does not support clusters.
    - It requires a token that only its processes know. The token of a cluster is not used, and none is written to disk.
    - Its processes run in separate sessions, so that a signal to this process's group does not reach them. They still
      die with this process, because Ray asks the kernel to end them.
    """
    environment: dict[str, str | None] = {
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", _LOOPBACK),
    }
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_TOKEN_PATH": None}
    with ExitStack() as stack:
        stack.enter_context(_environment(environment))
        stack.enter_context(_replaced(ray_constants, "ENABLE_RAY_CLUSTER", lambda _: False))
        if os.name == "posix":
            stack.enter_context(_replaced(services, "ConsolePopen", _in_own_session))
        _forget_token()
        yield


def _in_own_session(popen: type) -> Callable[..., Any]:
    return lambda *args, **options: popen(*args, **options, start_new_session=True)


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _replaced(module: Any, name: str, made: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces an attribute of a module; does nothing if this version of Ray lacks it."""
    if (before := getattr(module, name, None)) is None:
        yield
        return
    setattr(module, name, made(before))
    try:
        yield
    finally:
        setattr(module, name, before)


def _forget_token() -> None:
    """Makes Ray's core forget its token and read the next one from the environment or the file."""
    with suppress(AttributeError):
        _raylet.Config.initialize("")
        _raylet.AuthenticationTokenLoader.instance().reset_cache()


def processes() -> dict[str, Any]:
    """Returns the essential processes of the local Ray, as `subprocess.Popen` objects."""
    node = ray._private.worker._global_node
    found = getattr(node, "all_processes", {})
    return {name: found[name][0].process for name in ("raylet", "gcs_server") if found.get(name)}


def held_sockets(raylet: int) -> list[int]:
    """Duplicates the raylet's ends of its connections to this process, and returns their descriptors.

    Args:
        raylet: its process id.

    If the raylet dies, Ray's core sees these connections close and immediately ends this process with code 1 and no
    message. While the duplicates exist, it waits instead, and the watch has time to report what happened. Without the
    necessary permission, or on systems other than Linux, the list is empty.
    """
    if not hasattr(os, "pidfd_open"):
        return []
    held: list[int] = []
    with suppress(OSError):
        pidfd = os.pidfd_open(raylet)
        try:
            for entry in Path(f"/proc/{raylet}/fd").iterdir():
                with suppress(OSError):
                    if entry.is_socket():
                        held += _held(pidfd, int(entry.name))
        finally:
            os.close(pidfd)
    return held


def _held(pidfd: int, number: int) -> list[int]:
    """Duplicates a descriptor of another process if it is a Unix socket whose other end is in this process."""
    copy = ctypes.CDLL(None).syscall(_PIDFD_GETFD, pidfd, number, 0)
    if copy < 0:
        return []
    with socket.socket(fileno=copy) as end:
        if end.family == socket.AF_UNIX:
            peer = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)
            if int.from_bytes(peer, sys.byteorder) == os.getpid():
                return [end.detach()]
    return []


def kill_processes() -> None:
    """Kills the remaining processes of a local Ray that does not answer."""
    node: Any = ray._private.worker._global_node
    if (raylet := processes().get("raylet")) is not None and os.name == "posix":
        with suppress(OSError):
            os.killpg(raylet.pid, signal.SIGKILL)  # its group: itself and its agents
    with suppress(Exception):  # Ray's own record of its processes may be inconsistent
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def session_folder() -> Path | None:
    """Returns the folder of logs and sockets of the Ray that this process started."""
    path = getattr(ray._private.worker._global_node, "_session_dir", None)
    return None if path is None else Path(path)


def remove_session(folder: Path) -> None:
    """Removes the folder of a Ray that has ended, unless one of its processes crashed."""
    for log in folder.glob("logs/*.err"):
        with suppress(OSError):
            content = log.read_bytes()
            if any(crash in content for crash in _CRASHES):
                return
    latest = folder.parent / "session_latest"
    with suppress(OSError):
        if latest.resolve() == folder.resolve():
            latest.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # a process that was just ending may have written during the first call
