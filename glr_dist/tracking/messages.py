"""Warnings about uploads that failed: one line on stderr each, without credentials."""

from __future__ import annotations

import sys
from pathlib import Path

from glr_dist.errors import TrackingError
from glr_dist.redaction import redact
from glr_dist.text import one_line


def warn(message: str) -> None:
    """Prints a warning."""
    print(f"warning: {redact(message)}", file=sys.stderr)


def warn_incomplete(folder: Path, error: BaseException | None) -> None:
    """Prints that a run has not been uploaded completely, and the command that uploads the rest.

    Args:
        folder: the run's folder.
        error: the reason; None if the server is too slow.
    """
    reason = reason_of(error) if error else "the server is slow"
    warn(f"MLflow has not received all of the run ({reason}); send the rest with: glr-dist sync {folder}")


def reason_of(error: BaseException) -> str:
    """Returns the first part of MLflow's message, or our own error that caused it, as one line without credentials."""
    if isinstance(error.__context__, TrackingError):
        error = error.__context__
    first, *_ = str(error).split(" with exception ")  # the rest is a traceback through its libraries
    return redact(one_line(first or type(error).__name__, limit=10**6))[:300]
