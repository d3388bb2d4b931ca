"""`glr-dist predict`."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from glr_dist.cli.arguments import add_checkpoint, add_device

HELP = "predict the classes or values of images, arrays or tables with a trained network"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument("folder", metavar="RUN_DIR", help="the run")
    command.add_argument(
        "words", metavar="INPUT", nargs="+", help="images, folders of images, .npy, .npz, .pt, .csv or .parquet files"
    )
    add_checkpoint(command)
    add_device(command)
    command.add_argument("--json", dest="form", action="store_const", const="json", default="table", help="print JSON")
    command.add_argument("--csv", dest="form", action="store_const", const="csv", help="print CSV")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.training.predictions import predictions, written
    from glr_dist.training.trained_run import load_run

    with redirect_stdout(sys.stderr):  # what the user's code prints must not mix with the predictions
        trained = load_run(options.folder, options.device, checkpoint=options.checkpoint)
        rows = predictions(trained, [Path(word) for word in options.words])
    print(written(rows, options.form))
    return 0
