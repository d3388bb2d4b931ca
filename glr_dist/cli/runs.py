"""`glr-dist runs`."""

from __future__ import annotations

import argparse
from pathlib import Path

from glr_dist.cli.results import PARENT

HELP = "list the runs in a folder: data, estimator, accuracy, robustness, epochs, state"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument(
        "folder", metavar="FOLDER", nargs="?", type=Path, default=PARENT, help="folder of the runs (default: runs)"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    import json

    from glr_dist.errors import ConfigError
    from glr_dist.run_table import runs_in, table_of

    if not options.folder.is_dir():
        raise ConfigError(f"{options.folder}: is not a folder")
    rows = runs_in(options.folder)
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        raise ConfigError(f"{options.folder}: holds no run of glr-dist train")
    print(table_of(rows))
    return 0
