"""Ray as the environment describes it: the address of a cluster, and submitted jobs. Does not import Ray."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from glr_dist.errors import ClusterError
from glr_dist.text import one_line

_PROBE_TIMEOUT = 1.5  # seconds that the cluster has to accept a TCP connection
_ANSWER_TIMEOUT = 10.0  # seconds that its gRPC server has to answer
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # ends with an empty SETTINGS frame


def ray_address() -> str | None:
    """Returns RAY_ADDRESS; None if it is not set or blank."""
    return os.environ.get("RAY_ADDRESS", "").strip() or None


def in_ray_job() -> bool:
    """Returns True in the driver of a submitted Ray job, which runs in a temporary copy of its working directory.

    Ray sets this variable only there, whereas any shell may have RAY_ADDRESS.
    """
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_reachable() -> None:
    """Checks that a server answers at RAY_ADDRESS, if it names a cluster, before anything slow is done for it.

    Raises:
        ClusterError: as `probe`.
    """
    if (address := ray_address()) is not None and address != "local":
        probe(address)


def probe(address: str) -> None:
    """Checks that a gRPC server answers at the address; Ray itself retries for minutes and ignores Ctrl-C.

    Raises:
        ClusterError: the address is malformed or unknown, or no gRPC server answers there.
    """
    if address == "auto":
        return
    scheme, separator, rest = address.rpartition("://")
    try:
        if separator and scheme != "ray":
            raise ValueError
        place = urlsplit(f"//{rest}")
        host, port = place.hostname, place.port
        if not host or not port:
            raise ValueError
    except ValueError:
        raise ClusterError(
            f"RAY_ADDRESS: {address!r} is not an address; allowed are HOST:PORT, ray://HOST:PORT, auto and local"
        ) from None
    if separator:
        raise ClusterError(
            f"RAY_ADDRESS: {address!r} is the address of a Ray Client server, which is not supported; use HOST:PORT of "
            "the cluster on one of its machines, or submit a job"
        )
    try:
        with socket.create_connection((host, port), timeout=_PROBE_TIMEOUT) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("", "0", "false"):
                connection.settimeout(_ANSWER_TIMEOUT)
                connection.sendall(_HTTP2_HELLO)
                if connection.recv(4)[3:] != _HTTP2_HELLO[-6:-5]:
                    raise ConnectionError("the server there is not Ray's GCS")
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or one_line(error)
        raise ClusterError(f"RAY_ADDRESS: the cluster at {address} cannot be joined ({reason})") from None
