"""Ends actor processes whose raylet is gone; Ray itself would let them finish their current call first."""

from __future__ import annotations

import os
import threading
import time

_INTERVAL = 0.2  # seconds between two checks of the parent process
_NAME = "watch of the raylet"  # of the thread
_GRACE = 0.5  # seconds that Ray has to end the process itself


def end_with_raylet() -> None:
    """Makes this actor or task process end a second after its parent process, the raylet.

    A local Ray dies with the driver. On a cluster, Ray ends the actors of a driver that has died.
    """
    if all(thread.name != _NAME for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=(os.getppid(),), name=_NAME, daemon=True).start()


def _watch(raylet: int) -> None:
    while os.getppid() == raylet:
        time.sleep(_INTERVAL)
    time.sleep(_GRACE)
    os._exit(1)
