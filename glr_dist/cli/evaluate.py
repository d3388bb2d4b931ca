"""`glr-dist evaluate`."""

from __future__ import annotations

import argparse
import sys

from glr_dist.cli.arguments import add_runs, runs_of
from glr_dist.cli.results import check_runs

HELP = "attack and corrupt the test images of runs, and report the remaining accuracy"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_runs(command, "key=value overrides of the suite")
    command.add_argument(
        "--suite",
        metavar="NAME|FILE",
        default="paper",
        help="quick, paper (default), full, authors, authors_50, reproduce, or a file",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.robustness.suite import load_suite

    runs, overrides = runs_of(options.words)
    suite = load_suite(options.suite, overrides)
    check_runs(runs)
    from glr_dist.robustness.evaluate import evaluate
    from glr_dist.robustness.page import markdown
    from glr_dist.robustness.report_files import ReportFiles

    try:
        reports = evaluate(runs, suite, device=options.device, actors=options.actors, which=options.checkpoint)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    from glr_dist.tracking import send_report

    for folder, report in zip(runs, reports, strict=True):
        send_report(folder)
        print(markdown(report))
        print(f"results  {ReportFiles(folder.absolute(), report.name).page}")
    return 0
