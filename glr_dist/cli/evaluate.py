"""`glr-dist evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glr_dist.cli.arguments import whole
from glr_dist.cli.results import check_runs

if TYPE_CHECKING:
    from glr_dist.robustness.suite import Suite
    from glr_dist.runs import CheckpointName

HELP = "attack and corrupt the test images of runs, and report the remaining accuracy"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument("words", metavar="RUN_DIR", nargs="+", help="runs, and key=value overrides of the suite")
    command.add_argument(
        "--suite",
        metavar="NAME|FILE",
        default="paper",
        help="quick, paper (default), full, authors, authors_50, or a file",
    )
    command.add_argument(
        "--checkpoint",
        choices=("newest", "best"),
        default="newest",
        help="checkpoint of each run; best: highest validation accuracy, report SUITE-SPLIT.best (default: newest)",
    )
    command.add_argument("--device", metavar="D", help="auto, cpu or cuda[:N] instead of the device of each run")
    command.add_argument(
        "--actors",
        metavar="N",
        type=whole,
        help="Ray actors that share the work; 0: none (default: as many as fit if RAY_ADDRESS is set, else 0)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.robustness.suite import load_suite

    overrides = [word for word in options.words if "=" in word and not Path(word).is_dir()]
    folders = [Path(word) for word in options.words if word not in overrides]
    runs = list({folder.resolve(): folder for folder in folders}.values())  # without repetitions
    suite = load_suite(options.suite, overrides)
    check_runs(runs)
    return evaluate_runs(runs, suite, options.device, options.actors, options.checkpoint)


def evaluate_runs(
    runs: Sequence[Path],
    suite: Suite,
    device: str | None = None,
    actors: int | None = None,
    which: CheckpointName = "newest",
    continued_by: str = "the same command",
) -> int:
    """Evaluates runs, prints and uploads their reports; returns the exit code.

    Takes the arguments of `robustness.evaluate.evaluate`; `continued_by` names the command that continues it.
    """
    from glr_dist.robustness.evaluate import evaluate
    from glr_dist.robustness.page import markdown
    from glr_dist.robustness.report_files import ReportFiles

    try:
        reports = evaluate(runs, suite, device=device, actors=actors, which=which)
    except KeyboardInterrupt:
        print(f"stopped; {continued_by} continues", file=sys.stderr)
        return 130
    from glr_dist.tracking import send_report

    for folder, report in zip(runs, reports, strict=True):
        send_report(folder)
        print(markdown(report))
        print(f"results  {ReportFiles(folder.absolute(), report.name).page}")
    return 0
