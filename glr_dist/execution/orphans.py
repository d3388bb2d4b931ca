"""Ends processes whose raylet is gone: actors, which Ray would let finish their current call, and Ray's agents."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

_INTERVAL = 0.2  # seconds between two checks of the parent process
_NAME = "watch of the raylet"  # of the thread
_GRACE = 0.5  # seconds that Ray has to end the process itself


def end_with_raylet() -> None:
    """Makes this actor or task process end a second after its parent process, the raylet.

    A local Ray dies with the driver, except the agents of its raylet, which would notice after a minute. They are the
    rest of the raylet's process group, which this process ends. On a cluster, Ray ends the actors of a driver that has
    died.
    """
    if all(thread.name != _NAME for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=(os.getppid(),), name=_NAME, daemon=True).start()


def _watch(raylet: int) -> None:
    while os.getppid() == raylet:
        time.sleep(_INTERVAL)
    time.sleep(_GRACE)
    if os.getsid(0) == raylet:  # a local Ray, whose raylet was started in a session of its own
        with suppress(OSError):
            os.killpg(raylet, signal.SIGKILL)
    os._exit(1)
