"""`glr-dist tune`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from glr_dist.cli.arguments import add_config, add_out
from glr_dist.cli.output import next_command, show_whole
from glr_dist.cli.overview import of_search, show_lines, show_tracking
from glr_dist.cli.results import results_folder

HELP = "search for good settings on the validation images, and write the best ones to a file"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)
    add_out(command)
    command.add_argument("--resume", action="store_true", help="continue the search in DIR (default: the newest one)")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.tuning.search_config import SEARCH_FILE, load_search

    search = load_search(options.config or options.out / SEARCH_FILE, options.overrides)
    lines = of_search(search)
    with results_folder(options, "tune-{}", "search", holds_results=_has_trials) as out:
        from glr_dist.execution.watch import explained

        loaded = False

        def stopped() -> str:
            if not loaded or not (out / SEARCH_FILE).exists():
                return "stopped before the search began"
            from glr_dist.tuning.search import progress

            return f"stopped with {progress(search, out)} done; continue with --resume --out {out}"

        try:
            with explained(lambda: f"; {stopped()}"):
                show_whole("results", out)
                show_tracking(search.base.tracking)
                show_lines(lines)
                from glr_dist.tuning.search import tune

                loaded = True
                print(tune(search, out, resume=options.resume))
        except KeyboardInterrupt:
            print(stopped(), file=sys.stderr)
            return 130
    show_whole("results", out)
    show_whole("next", next_command("train", out / "best.yaml"))
    return 0


def _has_trials(out: Path) -> bool:
    return any(path.is_dir() for path in out.glob("trials/*"))
