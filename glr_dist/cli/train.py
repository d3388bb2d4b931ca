"""`glr-dist train`."""

from __future__ import annotations

import argparse
import sys

from glr_dist.cli.arguments import add_config, add_out
from glr_dist.cli.results import results_folder

HELP = "train a network and test it once at the end"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)
    add_out(command)
    command.add_argument("--resume", action="store_true", help="continue the run in DIR (default: the newest one)")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.config import load_config
    from glr_dist.runs import RunFolder

    config = load_config(options.config or RunFolder(options.out).config_file, options.overrides)
    with results_folder(options, "{}") as out:
        from glr_dist.tracking import tracked
        from glr_dist.training.checkpoint import last_epoch
        from glr_dist.training.train import trainer_of

        try:
            trainer = trainer_of(config, out, resume=options.resume)
            with tracked(config, out):
                summary = trainer.run()
        except KeyboardInterrupt:
            # The run continues after the last epoch that has a checkpoint.
            done = last_epoch(RunFolder(out).checkpoints)
            print(f"stopped after epoch {done}; continue with --resume --out {out}", file=sys.stderr)
            return 130
    width = max(map(len, summary))
    for key, value in summary.items():
        print(f"{key:<{width}}  {value}")
    print(f"{'results':<{width}}  {out}")
    return 0
