"""`glr-dist compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from glr_dist.cli.arguments import add_out, positive
from glr_dist.cli.results import check_runs, results_folder

HELP = "tabulate the robustness reports of runs beside the paper's figures"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument("words", metavar="RUN_DIR", nargs="+", help="runs that were evaluated with the same suite")
    command.add_argument(
        "--suite",
        metavar="NAME",
        help="suite to compare, such as paper, quick-validation or quick-test.best (default: the only shared one)",
    )
    command.add_argument("--eps", metavar="X", type=positive, help="ε of the attacks to show (default: 0.13)")
    add_out(command)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    runs = [Path(word) for word in options.words]
    check_runs(runs)
    with results_folder(options, "compare") as out:
        from glr_dist.robustness.compare import compare

        print(compare(runs, out, options.eps, options.suite))
    print(f"results  {out}")
    return 0
