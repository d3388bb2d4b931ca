"""`glr-dist init`."""

from __future__ import annotations

import argparse
from pathlib import Path

from glr_dist.cli.output import next_command, show_whole

HELP = "write a commented configuration, a network and a data set to start from"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument("folder", metavar="DIR", nargs="?", default=".", help="the folder (default: this one)")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from importlib.resources import files

    from glr_dist.errors import ConfigError

    folder = Path(options.folder)
    starter = [file for file in (files("glr_dist") / "starter").iterdir() if file.name.endswith((".yaml", ".py"))]
    for file in starter:
        if (folder / file.name).exists():
            raise ConfigError(f"{folder / file.name} exists; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(starter, key=lambda file: file.name):
        (folder / file.name).write_bytes(file.read_bytes())
        show_whole("wrote", folder / file.name)
    show_whole("next", next_command("train", (folder / "config.yaml").absolute()))
    return 0
