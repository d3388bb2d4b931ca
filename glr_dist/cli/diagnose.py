"""`glr-dist diagnose`."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from glr_dist.cli.arguments import add_config, add_out
from glr_dist.cli.results import results_folder

HELP = "measure bias, variance and cosine of the gradient estimates for different σ, K and M"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)
    add_out(command)
    command.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help="measure at these weights instead of the initial ones"
    )
    command.add_argument(
        "--grid", action="store_true", help="compare all pairs of diagnose.scales and diagnose.copies; recommend one"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.config import load_config

    config = load_config(options.config, options.overrides)
    with results_folder(options, "diagnose-{}") as out:
        from glr_dist.diagnostics import diagnose, diagnose_grid

        if options.grid:
            columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            print(diagnose_grid(config, out, options.checkpoint).table(columns))
        else:
            print(diagnose(config, out, options.checkpoint))
    print(f"results  {out}")
    return 0
