"""The arguments of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from glr_dist import __version__
from glr_dist.cli import (
    certify,
    compare,
    completion,
    config,
    diagnose,
    evaluate,
    export,
    init,
    plan,
    predict,
    reproduce,
    runs,
    summary,
    sync,
    train,
    tune,
)
from glr_dist.cli.arguments import take_config

COMMANDS = {
    "init": init,
    "train": train,
    "evaluate": evaluate,
    "certify": certify,
    "compare": compare,
    "predict": predict,
    "export": export,
    "runs": runs,
    "sync": sync,
    "diagnose": diagnose,
    "tune": tune,
    "reproduce": reproduce,
    "summary": summary,
    "plan": plan,
    "config": config,
    "completion": completion,
}


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, as the commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `glr-dist`. Its result has the function `run` of the command, and what `run` reads."""
    root = _Parser(
        prog="glr-dist", description="Train neural networks without backpropagation, by likelihood ratio gradients."
    )
    root.add_argument("--version", action="version", version=f"glr-dist {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        text = module.HELP
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return root


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of a command.

    Raises:
        SystemExit: 0 after --help and --version, 2 after an error that one line on stderr explains.
    """
    root = parser()
    options, rest = root.parse_known_args(arguments)
    if options.command is None:
        root.print_help()
        root.exit(0)
    # argparse takes positional arguments from one place only; here they may stand before, between and after options.
    for word in rest:
        if word.startswith("-"):
            root.error(f"unknown option {word}")
        options.words.append(word)
    if "config" in options and (problem := take_config(options)) is not None:
        root.error(f"{options.command}: {problem}")
    return options
