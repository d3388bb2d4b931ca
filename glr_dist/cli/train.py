"""`glr-dist train`."""

from __future__ import annotations

import argparse
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
    from glr_dist.robustness.suite import Suite
    from glr_dist.training.trainer import Trainer

HELP = "train a network and test it once at the end"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)
    add_out(command)
    command.add_argument("--resume", action="store_true", help="continue the run in DIR (default: the newest one)")
    command.add_argument(
        "--evaluate", metavar="SUITE", help="evaluate the robustness of the finished run, as glr-dist evaluate --suite"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.config import load_config
    from glr_dist.runs import RunFolder

    config = load_config(options.config or RunFolder(options.out).config_file, options.overrides)
    from glr_dist.tracking import check_location

    suite = _suite_of(options.evaluate)
    check_location(config.tracking)
    lines = expected(config)
    with results_folder(options, "{}", holds_results=lambda out: bool(RunFolder(out).metrics())) as out:
        from glr_dist.execution.address import check_reachable
        from glr_dist.execution.watch import explained

        def stopped() -> str:
            if not RunFolder(out).exists:
                return "stopped before the run began"
            return f"stopped after epoch {RunFolder(out).last_epoch()}; continue with --resume --out {out}"

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
    if suite is None:
        show_whole("next", next_command("evaluate", out))
        return 0
    from glr_dist.cli.evaluate import evaluate_runs

    print(flush=True)
    again = f"{next_command('evaluate', out)} --suite {shlex.quote(options.evaluate)}"
    return evaluate_runs([out], suite, continued_by=again)


def _suite_of(name: str | None) -> Suite | None:
    """Returns the suite that evaluates the finished run, so that a wrong name ends the command before the training."""
    if name is None:
        return None
    from glr_dist.robustness.suite import load_suite

    return load_suite(name)


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
