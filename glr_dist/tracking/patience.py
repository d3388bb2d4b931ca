"""The time that an ended run waits for the upload of the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOCAL_LIMIT = 60.0  # seconds of local work, such as the export of the network


class Patience:
    """One deadline for all answers of a server together. Local work between them does not count.

    Another thread may work while this one waits.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._limit = 0.0
        self._local = 0.0  # seconds of finished local work since the start
        self._local_since: float | None = None  # start of the current local work

    def start(self, limit: float) -> None:
        """Starts to wait for at most `limit` seconds."""
        self._limit, self._local, self._started = limit, 0.0, time.monotonic()

    @property
    def is_over(self) -> bool:
        """True once the time is over; False before the start."""
        if self._started is None:
            return False
        now, since = time.monotonic(), self._local_since
        local = self._local + (now - max(since, self._started) if since is not None else 0.0)
        return now - self._started - local > self._limit or local > _LOCAL_LIMIT

    @contextmanager
    def local_work(self) -> Iterator[None]:
        """Stops the clock while the body works without the server."""
        self._local_since = time.monotonic()
        try:
            yield
        finally:
            since, self._local_since = self._local_since, None
            if self._started is not None:
                self._local += time.monotonic() - max(since, self._started)
