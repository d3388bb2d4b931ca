"""`glr-dist reproduce`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from glr_dist.cli.arguments import count, folder, whole
from glr_dist.cli.output import show, show_whole

HELP = "train and evaluate all models of the paper, and tabulate them beside the published figures"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument(
        "words", metavar="DATASET", nargs="*", help="mnist, fashion_mnist, tiny_imagenet; or digits, to try the command"
    )
    command.add_argument("--seeds", metavar="N", type=count, help="seeds of each model (default: 3; with --quick: 1)")
    command.add_argument(
        "--seeds-of",
        metavar="MODEL=N",
        action="append",
        default=[],
        help="another number of seeds of one model, as in lrtz=10; may be given for several models",
    )
    command.add_argument(
        "--models",
        metavar="NAME",
        default="paper",
        help="paper: the authors' own settings (default); robust: networks trained with noise on the inputs",
    )
    command.add_argument(
        "--over",
        metavar="SETTING=[VALUE, …]",
        help="train each model with each of these values, and plot the trade-off over them",
    )
    command.add_argument(
        "--quick", action="store_true", help="rehearsal: a tenth of the epochs, few images; not the reproduction"
    )
    command.add_argument(
        "--configs", metavar="DIR", type=folder, default=Path("configs"), help="folder of the configurations (configs)"
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        type=folder,
        help="folder for the results; the same command continues what it holds "
        "(default: runs/reproduce, with the models, the setting and quick at its end if they are given)",
    )
    command.add_argument(
        "--actors",
        metavar="N",
        type=whole,
        help="runs at the same time, each on a Ray actor; 0: one, without Ray (default: as many as fit)",
    )
    command.add_argument(
        "--gpus-per-run", metavar="G", type=float, default=0.0, help="GPUs of a run, as in 0.5 (default: 0)"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.errors import ConfigError
    from glr_dist.reproduction.recipe import PAPER, Plan, check_data, planned_runs
    from glr_dist.reproduction.sweep import sweep_of
    from glr_dist.reproduction.table import REHEARSAL

    check_data(options.words)
    if not 0 <= options.gpus_per_run <= 1:
        raise ConfigError(f"--gpus-per-run: {options.gpus_per_run:g} is not allowed: a number from 0 to 1")
    if options.actors == 0 and options.gpus_per_run:
        raise ConfigError("--gpus-per-run: has no effect with --actors 0; leave it out")
    over = sweep_of(options.over) if options.over is not None else None
    seeds_of = _seeds_of(options.seeds_of)
    kind = [options.models] if options.models != PAPER else []
    kind += [over.setting] if over else []
    kind += ["quick"] if options.quick else []
    out = (options.out or Path("runs") / "-".join(["reproduce", *kind])).absolute()
    seeds = options.seeds or (1 if options.quick else 3)
    gpu = options.gpus_per_run > 0
    plans = [
        Plan(name, options.configs, out / name, seeds, options.quick, gpu, options.models, over, seeds_of)
        for name in options.words
    ]
    runs = sum(len(planned_runs(plan)) for plan in plans)  # finds every wrong configuration before the first run
    show_whole("results", out)
    show("runs", runs)
    if options.quick:
        show_whole("note", f"this is {REHEARSAL}")
    from glr_dist.reproduction.reproduce import reproduce

    for plan in plans:
        try:
            print(f"\n{reproduce(plan, actors=options.actors, gpus=options.gpus_per_run)}")
        except KeyboardInterrupt:
            print("stopped; the same command continues", file=sys.stderr)
            return 130
        show_whole("results", plan.out / "table.md")
    if options.quick:
        show_whole("note", f"this was {REHEARSAL}")
    return 0


def _seeds_of(words: Sequence[str]) -> dict[str, int]:
    """Returns the number of seeds by model from words such as lrtz=10.

    Raises:
        ConfigError: one is not such a word, or a model occurs twice.
    """
    from glr_dist.errors import ConfigError

    found: dict[str, int] = {}
    for word in words:
        model, _, number = word.partition("=")
        if not model or not (number.isascii() and number.isdecimal()) or int(number) < 1:
            raise ConfigError(f"--seeds-of: {word!r} is not allowed: MODEL=N with N of at least 1, as in lrtz=10")
        if model in found:
            raise ConfigError(f"--seeds-of: {model!r} is given twice")
        found[model] = int(number)
    return found
