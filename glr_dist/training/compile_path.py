"""The path of a run: compiled or eager redraws, chosen before the first step, and kept when the run is resumed."""

from __future__ import annotations

import sys

from glr_dist.config import Config


def with_path(config: Config, path: str) -> Config:
    """Returns the configuration with another `execution.compile`."""
    execution = config.execution.model_copy(update={"compile": path})
    return config.model_copy(update={"execution": execution})


def with_path_of(before: Config, now: Config) -> Config:
    """Returns the configuration that resumes a run, with the path of the run so far.

    Args:
        before: the configuration of the run so far.
        now: the configuration that resumes it.
    """
    path, wanted = before.execution.compile, now.execution.compile
    if path != wanted and "auto" not in (path, wanted):
        print(f"execution.compile: {path}, as the run began; {wanted} needs a new run", file=sys.stderr)
    return with_path(now, path)
