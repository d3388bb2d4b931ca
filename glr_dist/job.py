"""Commands as entry points of Ray jobs. Does not import Ray."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from glr_dist.cli import main
from glr_dist.cli.arguments import folder
from glr_dist.execution.address import in_ray_job


def run_as_job(command: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command of `glr-dist` that writes results.

    Args:
        command: the name of the command.
        arguments: the arguments of the command (default: those of this process).

    Returns:
        The exit code of the command, or 2 if the results would be lost with the job.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if in_ray_job() and not {"-h", "--help"} & set(arguments) and not _out(arguments).is_absolute():
        print(
            f"{command}: --out: a Ray job runs in a temporary copy of its working directory; "
            "give an absolute folder that outlives it, as in --out /shared/runs/my-run",
            file=sys.stderr,
        )
        return 2
    return main([command, *arguments])


def _out(arguments: Sequence[str]) -> Path:
    """Returns the folder of --out, a relative one if it is missing; the command itself reports any other error."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", nargs="?", const="", default="")
    try:
        return folder(parser.parse_known_args(arguments)[0].out)
    except argparse.ArgumentTypeError:
        return Path("/")
