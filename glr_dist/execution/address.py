"""Ray as the environment describes it: the address of a cluster, and submitted jobs. Does not import Ray."""

from __future__ import annotations

import os


def ray_address() -> str | None:
    """Returns RAY_ADDRESS; None if it is not set or blank."""
    return os.environ.get("RAY_ADDRESS", "").strip() or None


def in_ray_job() -> bool:
    """Returns True in the driver of a submitted Ray job, which runs in a temporary copy of its working directory.

    Ray sets this variable only there, whereas any shell may have RAY_ADDRESS.
    """
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
