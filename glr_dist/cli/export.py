"""`glr-dist export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from glr_dist.cli.arguments import add_checkpoint
from glr_dist.cli.output import show, show_whole

HELP = "write a trained network to a file for torch (.pt2, .safetensors) or onnxruntime (.onnx)"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument("folder", metavar="RUN_DIR", help="the run")
    command.add_argument("--to", metavar="FILE", type=Path, required=True, help="model.pt2, model.onnx, …")
    add_checkpoint(command)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.training.export import export
    from glr_dist.training.trained_run import load_run

    difference = export(load_run(options.folder, "cpu", checkpoint=options.checkpoint), options.to)
    show_whole("wrote", options.to.absolute())
    show("checked", f"its outputs differ by at most {difference:.1g} of the largest output of the run")
    return 0
