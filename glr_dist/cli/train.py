"""`glr-dist train`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from glr_dist.cli.arguments import add_config, add_out
from glr_dist.cli.output import next_command, show, show_whole
from glr_dist.cli.overview import expected, show_lines, show_loaded, show_tracking
from glr_dist.cli.results import results_folder

if TYPE_CHECKING:
    from glr_dist.training.trainer import Trainer

HELP = "train a network and test it once at the end"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)
    add_out(command)
    command.add_argument("--resume", action="store_true", help="continue the run in DIR (default: the newest one)")
    command.add_argument(
        "--evaluate", metavar="SUITE", help="evaluate the finished run; short for robustness.at_end=SUITE"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.config import load_config
    from glr_dist.runs import RunFolder

    at_end = [] if options.evaluate is None else [f"robustness.at_end={json.dumps(options.evaluate)}"]
    config = load_config(options.config or RunFolder(options.out).config_file, [*options.overrides, *at_end])
    from glr_dist.robustness.training_settings import training_settings
    from glr_dist.tracking import check_location

    training_settings(config.robustness)  # a wrong name ends the command before anything is loaded
    check_location(config.tracking)
    lines = expected(config)
    with results_folder(options, "{}", holds_results=lambda out: bool(RunFolder(out).metrics())) as out:
        from glr_dist.execution.address import check_reachable
        from glr_dist.execution.watch import explained

        def stopped() -> str:
            if not RunFolder(out).exists:
                return "stopped before the run began"
            again = "" if options.evaluate is None else f" --evaluate {shlex.quote(options.evaluate)}"
            finished = config.robustness.at_end is not None and RunFolder(out).summary_file.exists()
            when = "before the end of the evaluation" if finished else f"after epoch {RunFolder(out).last_epoch()}"
            return f"stopped {when}; continue with --resume --out {out}{again}"

        try:
            with explained(lambda: f"; {stopped()}"), _resumable(out, stopped):
                show_whole("results", out)
                show_tracking(config.tracking)
                show_lines(lines)
                if config.execution.kind in ("layers", "replicas") and not options.resume:  # a finished run needs none
                    check_reachable()
                from glr_dist.tracking import tracked
                from glr_dist.training.train import trainer_of

                trainer = trainer_of(config, out, resume=options.resume)
                show_loaded(trainer, lines)
                _show_start(trainer)
                with tracked(config, out) as tracking:
                    summary = trainer.run()
        except KeyboardInterrupt:
            print(stopped(), file=sys.stderr)
            return 130
    for key, value in summary.items():
        show(key, value)
    show_whole("results", out)
    if tracking is not None and tracking.address is not None:
        show_whole("page", tracking.address)
    evaluator = trainer.evaluator
    if evaluator is None or evaluator.report is None:
        show_whole("next", next_command("evaluate", out) if trainer.of_images else next_command("runs", out.parent))
        return 0
    from glr_dist.robustness.page import markdown
    from glr_dist.robustness.report_files import ReportFiles

    print(f"\n{markdown(evaluator.report)}")
    print(f"results  {ReportFiles(out.absolute(), evaluator.report.name).page}")
    return 0


@contextmanager
def _resumable(out: Path, stopped: Callable[[], str]) -> Iterator[None]:
    """Adds to an error of the cluster how to continue the run, if it has finished an epoch."""
    from glr_dist.errors import ClusterError
    from glr_dist.runs import RunFolder

    try:
        yield
    except ClusterError as error:
        if not RunFolder(out).metrics():
            raise
        raise ClusterError(f"{error}; {stopped()}") from None


def _show_start(trainer: Trainer) -> None:
    model = trainer.config.model
    if model.weights is not None and trainer.carried is not None:
        anew = trainer.config.noise.learn != "none" and not trainer.carried
        show_whole("weights", f"{model.weights}{', noise scales begin at noise.scale' if anew else ''}")
    if trainer.epoch:
        show("resumed", f"after epoch {trainer.epoch}")
