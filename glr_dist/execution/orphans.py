"""Ends the processes of actors whose raylet has gone; Ray itself waits until their current call ends."""

from __future__ import annotations

import os
import threading
import time

_INTERVAL = 1.0  # seconds between two looks at the parent process
_NAME = "watch of the raylet"  # of the thread
_GRACE = 3.0  # seconds that Ray has to end the process itself


def end_with_raylet() -> None:
    """Makes this process of an actor or task end a few seconds after its parent, the raylet.

    A local Ray dies with the driver. On a cluster, Ray ends the actors of a driver that has died.
    """
    if all(thread.name != _NAME for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=(os.getppid(),), name=_NAME, daemon=True).start()


def _watch(raylet: int) -> None:
    while os.getppid() == raylet:
        time.sleep(_INTERVAL)
    time.sleep(_GRACE)
    os._exit(1)
