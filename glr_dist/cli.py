"""The command line: `glr-dist train | diagnose | config`. Torch is imported once a command runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from glr_dist import __version__

if TYPE_CHECKING:
    from glr_dist.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0 done, 2 a mistake that one line on stderr explains, 130 stopped by Ctrl-C.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; overrides may stand anywhere.
    for argument in rest:
        if argument.startswith("-"):
            parser.error(f"unknown option {argument}")
        options.overrides.append(argument)
    # Imported here: --help must not wait for pydantic, and the rest not for torch before the configuration is right.
    from glr_dist.config import dump, load
    from glr_dist.errors import UserError

    try:
        settings = load(options.config, options.overrides)
        if options.command == "config":
            print(dump(settings), end="")
            return 0
        with _terminated_as_interrupted():
            return (_diagnose if options.command == "diagnose" else _train)(options, settings)
    except (UserError, FloatingPointError) as error:
        return _mistake(str(error))
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="glr-dist", description="Train neural networks without backpropagation, by likelihood ratio gradients."
    )
    parser.add_argument("--version", action="version", version=f"glr-dist {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("train", "train a network and test it once at the end"),
        ("diagnose", "measure bias, variance and cosine of the gradient estimates against K and M"),
        ("config", "print the resolved configuration with every default"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("config", metavar="CONFIG.yaml", type=Path)
        command.add_argument("overrides", metavar="key=value", nargs="*", help="override, as in noise.scale=0.5")
        if name != "config":
            command.add_argument(
                "--out", metavar="DIR", type=Path, help="folder of the results (default: a new one in runs/)"
            )
        if name == "train":
            command.add_argument(
                "--resume", action="store_true", help="continue the run in DIR (default: the newest one)"
            )
        if name == "diagnose":
            command.add_argument("--checkpoint", metavar="FILE", type=Path, help="instead of the initial weights")
    return parser


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which a cluster sends to stop a job, ends a run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: the process's owner handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _train(options: argparse.Namespace, settings: Config) -> int:
    from glr_dist.training.trainer import Trainer

    out = _folder(options.out, options.config.stem, resume=options.resume)
    trainer = None
    try:
        trainer = Trainer(settings, out, resume=options.resume)
        summary = trainer.run()
    except OSError as error:
        return _mistake(f"{error.filename or out}: cannot be written ({error.strerror})")
    except KeyboardInterrupt:
        done = trainer.epoch if trainer else 0
        print(f"stopped after epoch {done}; continue with --resume --out {out}", file=sys.stderr)
        return 130
    width = max(map(len, summary))
    for key, value in summary.items():
        print(f"{key:<{width}}  {value}")
    print(f"{'results':<{width}}  {out}")
    return 0


def _diagnose(options: argparse.Namespace, settings: Config) -> int:
    from glr_dist.diagnostics import diagnose

    out = _folder(options.out, f"diagnose-{options.config.stem}", resume=False)
    try:
        report = diagnose(settings, out, options.checkpoint)
    except OSError as error:
        return _mistake(f"{error.filename or out}: cannot be written ({error.strerror})")
    print(report)
    print(f"results  {out}")
    return 0


def _folder(given: Path | None, stem: str, *, resume: bool) -> Path:
    """The absolute folder of the results: the given one, or runs/STEM-NUMBER (the newest to resume, else a new one)."""
    if given is not None:
        return given.absolute()
    numbers = [
        int(path.name.rpartition("-")[2])
        for path in Path("runs").glob(f"{stem}-[0-9]*")
        if path.name[len(stem) + 1 :].isdigit()
    ]
    latest = max(numbers, default=0)
    number = latest if resume and latest else latest + 1
    return Path("runs").absolute() / f"{stem}-{number}"


def _mistake(message: str) -> int:
    print(f"glr-dist: {message}", file=sys.stderr)
    return 2
