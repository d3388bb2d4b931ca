"""Address of the Ray cluster that the environment names."""

from __future__ import annotations

import os


def ray_address() -> str | None:
    """Returns RAY_ADDRESS; None if it is not set or blank. Ray itself is not imported."""
    return os.environ.get("RAY_ADDRESS", "").strip() or None
