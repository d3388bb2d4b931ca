"""Arguments that several commands take, and the types of their values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit


def add_config(command: argparse.ArgumentParser) -> None:
    """Adds CONFIG.yaml and its overrides, which `take_config` tells apart."""
    command.add_argument("config", metavar="CONFIG.yaml", nargs="?", help="the configuration")
    command.add_argument("words", metavar="key=value", nargs="*", help="override of a setting, e.g. noise.scale=0.5")


def take_config(options: argparse.Namespace) -> str | None:
    """Turns the words of a command into `options.config` and `options.overrides`; returns an error.

    A run that is resumed in --out DIR has its configuration there.
    """
    words = [word for word in (options.config, *options.words) if word is not None]
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        options.config, options.overrides = Path(words[0]), words[1:]
        return None
    options.config, options.overrides = None, words
    if getattr(options, "resume", False) and options.out is not None:
        return None
    return "CONFIG.yaml is missing" + ("; only --resume --out DIR works without" if "resume" in options else "")


def add_runs(command: argparse.ArgumentParser, overrides: str) -> None:
    """Adds the runs that a command measures, and where; `runs_of` tells them from settings.

    Args:
        command: the parser of the command.
        overrides: help for the settings among its words.
    """
    command.add_argument("words", metavar="RUN_DIR", nargs="+", help=f"runs, and {overrides}")
    add_checkpoint(command)
    add_device(command)
    command.add_argument(
        "--actors",
        metavar="N",
        type=whole,
        help="Ray actors that share the work; 0: none (default: as many as fit if RAY_ADDRESS is set, else 0)",
    )


def add_checkpoint(command: argparse.ArgumentParser, more: str = "") -> None:
    """Adds --checkpoint, with `more` help."""
    command.add_argument(
        "--checkpoint",
        choices=("newest", "best"),
        default="newest",
        help=f"checkpoint of the run; best: highest validation accuracy{more} (default: newest)",
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """Adds --device."""
    command.add_argument("--device", metavar="D", help="auto, cpu or cuda[:N] instead of the device of the run")


def runs_of(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Returns the runs among the words of a command, without repetitions, and the settings among them."""
    overrides = [word for word in words if "=" in word and not Path(word).is_dir()]
    folders = [Path(word) for word in words if word not in overrides]
    return list({folder.resolve(): folder for folder in folders}.values()), overrides


def add_out(command: argparse.ArgumentParser) -> None:
    """Adds --out."""
    command.add_argument(
        "--out", metavar="DIR", type=folder, help="folder for the results (default: a new folder in runs/)"
    )


def folder(text: str) -> Path:
    """Reads a local folder: a path, or a URI such as file:///shared/runs."""
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return Path(text)
    uri = urlsplit(text)
    if uri.scheme.lower() != "file" or uri.netloc not in ("", "localhost"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a local folder; results are written to local folders only")
    return Path(unquote(uri.path))


def count(text: str) -> int:
    """Reads a whole number of at least 1."""
    if whole(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """Reads a whole number of at least 0."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number below 1,000,000,000")
    return int(text)


def positive(text: str) -> float:
    """Reads a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
