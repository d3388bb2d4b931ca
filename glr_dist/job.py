"""Commands as entry points of Ray jobs. Imports no Ray."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from glr_dist.cli import main

# Ray sets it for the driver of a submitted job and for nothing else: RAY_ADDRESS may be set in any shell.
_IN_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def run_as_job(command: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command of `glr-dist` that writes results.

    Args:
        command: its name.
        arguments: its arguments; those of this process by default.

    Returns:
        Its exit code; 2 for results that would be lost with the job.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if _IN_RAY_JOB in os.environ and not {"-h", "--help"} & set(arguments) and not _out(arguments).is_absolute():
        print(
            f"{command}: --out: a Ray job runs in a temporary copy of its working directory; "
            "give an absolute folder that outlives it, as in --out /shared/runs/my-run",
            file=sys.stderr,
        )
        return 2
    return main([command, *arguments])


def _out(arguments: Sequence[str]) -> Path:
    """The --out of the arguments, relative where there is none; all other mistakes are left to the library."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path, nargs="?", const=Path(), default=Path())
    out: Path = parser.parse_known_args(arguments)[0].out
    return out
