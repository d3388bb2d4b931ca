"""The command line: `glr-dist train | diagnose | plan | config`. Torch is imported once a command runs."""

from __future__ import annotations

import argparse
import math
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
            return {"train": _train, "diagnose": _diagnose, "plan": _plan}[options.command](options, settings)
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
        ("plan", "list the work items of a step and predict its time on 1 to 1024 actors and GPUs"),
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
        if name == "plan":
            powers = [2**power for power in range(11)]
            command.add_argument(
                "--actors",
                metavar="N",
                type=_count,
                nargs="+",
                default=powers,
                help="numbers to predict (1 2 4 … 1024)",
            )
            for option, unit, default in (
                ("--gpu-tflops", "TFLOP/s of a simulated GPU", 50.0),
                ("--bandwidth", "GB/s of its link", 25.0),
                ("--latency", "microseconds of a message", 20.0),
            ):
                command.add_argument(option, metavar="X", type=_positive, default=default, help=f"{unit} ({default:g})")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


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
    from glr_dist.training.checkpoint import last_epoch
    from glr_dist.training.trainer import trainer_of

    out = _folder(options.out, options.config.stem, resume=options.resume)
    try:
        summary = trainer_of(settings, out, resume=options.resume).run()
    except OSError as error:
        return _mistake(f"{error.filename or out}: cannot be written ({error.strerror})")
    except KeyboardInterrupt:
        # What the disk holds: an epoch that is not in a checkpoint yet will be run again.
        done = last_epoch(out / "checkpoints")
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


def _plan(options: argparse.Namespace, settings: Config) -> int:
    from dataclasses import replace

    from glr_dist.planning import GPU, plan_step

    out = _folder(options.out, f"plan-{options.config.stem}", resume=False)
    gpu = replace(
        GPU, rate=options.gpu_tflops * 1e12, bandwidth=options.bandwidth * 1e9, latency=options.latency * 1e-6
    )
    try:
        report = plan_step(settings, out, options.actors, gpu)
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
