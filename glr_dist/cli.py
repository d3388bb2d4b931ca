"""The command line: `glr-dist train | evaluate | compare | …`. Torch is imported once a command runs."""

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
    # argparse takes positional arguments in one run only; they may stand anywhere.
    for argument in rest:
        if argument.startswith("-"):
            parser.error(f"unknown option {argument}")
        options.given.append(argument)
    # Imported here: --help must not wait for pydantic, and the rest not for torch before the configuration is right.
    from glr_dist.errors import UserError

    try:
        with _terminated_as_interrupted():
            return _COMMANDS[options.command](options)
    except (UserError, FloatingPointError) as error:
        return _mistake(str(error))
    except OSError as error:
        return _mistake(f"{error.filename or options.out or 'output'}: cannot be written ({error.strerror})")
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
    parser.set_defaults(out=None)
    parser.add_argument("--version", action="version", version=f"glr-dist {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("train", "train a network and test it once at the end"),
        ("evaluate", "attack and corrupt the test images of runs, and report what is left of the accuracy"),
        ("compare", "set the robustness reports of runs side by side, with the paper's figures"),
        ("sync", "send to MLflow what it lacks of tracked runs that have ended"),
        ("diagnose", "measure bias, variance and cosine of the gradient estimates against K and M"),
        ("tune", "search for good settings: many trials on the validation images, and the best of them as a file"),
        ("plan", "list the work items of a step and predict its time on 1 to 1024 actors and GPUs"),
        ("config", "print the resolved configuration with every default"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == "evaluate":
            command.add_argument(
                "given", metavar="RUN_DIR", nargs="+", help="runs, and key=value overrides of the suite"
            )
            command.add_argument(
                "--suite", metavar="NAME|FILE", default="paper", help="quick, paper (the default), full, or a YAML file"
            )
            command.add_argument("--device", metavar="D", help="auto, cpu or cuda[:N] instead of the runs' own")
            command.add_argument(
                "--actors",
                metavar="N",
                type=_whole,
                help="Ray actors to spread the work over; 0: none (default: as many as fit where RAY_ADDRESS is set)",
            )
            continue
        if name == "compare":
            command.add_argument("given", metavar="RUN_DIR", nargs="+", help="runs that were evaluated by one suite")
            command.add_argument("--eps", metavar="X", type=_positive, help="of the attacks that are shown (0.13)")
            _add_out(command)
            continue
        if name == "sync":
            command.add_argument("given", metavar="RUN_DIR", nargs="+", help="runs with tracking.kind=mlflow")
            continue
        command.add_argument("config", metavar="CONFIG.yaml", type=Path)
        command.add_argument("given", metavar="key=value", nargs="*", help="override, as in noise.scale=0.5")
        if name != "config":
            _add_out(command)
        if name in ("train", "tune"):
            what = "run" if name == "train" else "search"
            command.add_argument(
                "--resume", action="store_true", help=f"continue the {what} in DIR (default: the newest one)"
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


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", metavar="DIR", type=Path, help="folder of the results (default: a new one in runs/)")


def _count(text: str) -> int:
    if _whole(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
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


def _train(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from glr_dist.tracking import tracked
    from glr_dist.training.checkpoint import last_epoch
    from glr_dist.training.train import trainer_of

    out = options.out = _folder(options.out, options.config.stem, resume=options.resume)
    try:
        trainer = trainer_of(settings, out, resume=options.resume)
        with tracked(settings, out):
            summary = trainer.run()
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


def _evaluate(options: argparse.Namespace) -> int:
    from glr_dist.robustness.suite import load_suite

    words = [word for word in options.given if "=" in word and not Path(word).is_dir()]
    folders = [Path(word) for word in options.given if word not in words]
    runs = list({folder.resolve(): folder for folder in folders}.values())  # each once
    suite = load_suite(options.suite, words)
    _check_runs(runs)
    options.out = runs[0]
    from glr_dist.robustness.evaluate import evaluate
    from glr_dist.robustness.page import markdown

    try:
        reports = evaluate(runs, suite, device=options.device, actors=options.actors)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    from glr_dist.tracking import send_report

    for run, report in zip(runs, reports, strict=True):
        send_report(run)
        print(markdown(report))
        print(f"results  {run.absolute() / 'robustness.md'}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    runs = [Path(word) for word in options.given]
    _check_runs(runs)
    from glr_dist.robustness.compare import compare

    options.out = _folder(options.out, "compare", resume=False)
    print(compare(runs, options.out, options.eps))
    print(f"results  {options.out}")
    return 0


def _sync(options: argparse.Namespace) -> int:
    runs = [Path(word) for word in options.given]
    _check_runs(runs)
    from glr_dist.tracking import sync

    for run in runs:
        state = sync(run)
        print(f"{run}: MLflow at {state.uri} has all, as run {state.run_id} of the experiment {state.experiment}")
    return 0


def _diagnose(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from glr_dist.diagnostics import diagnose

    options.out = _folder(options.out, f"diagnose-{options.config.stem}", resume=False)
    print(diagnose(settings, options.out, options.checkpoint))
    print(f"results  {options.out}")
    return 0


def _tune(options: argparse.Namespace) -> int:
    from glr_dist.tuning.search_config import load_search

    search = load_search(options.config, options.given)
    from glr_dist.tuning.search import progress, tune

    out = options.out = _folder(options.out, f"tune-{options.config.stem}", resume=options.resume)
    try:
        print(tune(search, out, resume=options.resume))
    except KeyboardInterrupt:
        print(f"stopped with {progress(search, out)} done; continue with --resume --out {out}", file=sys.stderr)
        return 130
    print(f"results  {out}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from dataclasses import replace

    settings = _settings(options)
    from glr_dist.planning import GPU, plan_step

    options.out = _folder(options.out, f"plan-{options.config.stem}", resume=False)
    gpu = replace(
        GPU, rate=options.gpu_tflops * 1e12, bandwidth=options.bandwidth * 1e9, latency=options.latency * 1e-6
    )
    print(plan_step(settings, options.out, options.actors, gpu))
    print(f"results  {options.out}")
    return 0


def _config(options: argparse.Namespace) -> int:
    from glr_dist.config import dump_config

    print(dump_config(_settings(options)), end="")
    return 0


_COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "sync": _sync,
    "diagnose": _diagnose,
    "tune": _tune,
    "plan": _plan,
    "config": _config,
}


def _settings(options: argparse.Namespace) -> Config:
    from glr_dist.config import load_config

    return load_config(options.config, options.given)


def _check_runs(runs: Sequence[Path]) -> None:
    """That the folders are there, before torch is."""
    from glr_dist.errors import ConfigError

    if not runs:
        raise ConfigError("RUN_DIR: no run is given, only settings")
    for run in runs:
        if not (run / "config.yaml").is_file():
            raise ConfigError(f"{run}: is no run of glr-dist train, it has no config.yaml")


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
