"""`glr-dist config`."""

from __future__ import annotations

import argparse

from glr_dist.cli.arguments import add_config

HELP = "print the resolved configuration with every default"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.config import dump_config, load_config

    print(dump_config(load_config(options.config, options.overrides)), end="")
    return 0
