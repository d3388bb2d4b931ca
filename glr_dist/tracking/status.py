"""How a run ends, in the terms of MLflow."""

from __future__ import annotations


class Paused(SystemExit):
    """Ends a run that continues later or was stopped on purpose; the next upload, or `sync`, sends what is missing."""


def final_status(error: type[BaseException] | None) -> tuple[str, bool]:
    """Returns MLflow's status of a run that ended with this exception (None: normally), and whether it stopped early.

    Ray Tune stops a trial early by a SystemExit.
    """
    if error is None:
        return "FINISHED", False
    if issubclass(error, SystemExit):
        return "FINISHED", True
    return ("KILLED" if issubclass(error, KeyboardInterrupt) else "FAILED"), False
