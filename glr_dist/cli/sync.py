"""`glr-dist sync`."""

from __future__ import annotations

import argparse
from pathlib import Path

from glr_dist.cli.results import check_runs

HELP = "upload what MLflow is missing from finished runs"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument("words", metavar="RUN_DIR", nargs="+", help="tracked runs")
    command.add_argument(
        "--uri", help="server or database to upload to (default: $MLFLOW_TRACKING_URI, else that of the run)"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    runs = [Path(word) for word in options.words]
    check_runs(runs)
    from glr_dist.tracking import sync

    for folder in runs:
        state = sync(folder, options.uri)
        print(
            f"{folder}: MLflow at {state.uri} has everything, as run {state.run_id} of the experiment "
            f"{state.experiment}"
        )
    return 0
