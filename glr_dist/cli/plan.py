"""`glr-dist plan`."""

from __future__ import annotations

import argparse

from glr_dist.cli.arguments import add_config, add_out, count, positive
from glr_dist.cli.results import results_folder

HELP = "list the work items of a step and predict its time on 1 to 1024 actors and GPUs"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)
    add_out(command)
    powers = [2**power for power in range(11)]
    command.add_argument(
        "--actors", metavar="N", type=count, nargs="+", default=powers, help="numbers to predict for (1 2 4 … 1024)"
    )
    for option, text, default in (
        ("--gpu-tflops", "TFLOP/s of a simulated GPU", 50.0),
        ("--bandwidth", "GB/s of its link", 25.0),
        ("--latency", "microseconds per message", 20.0),
    ):
        command.add_argument(option, metavar="X", type=positive, default=default, help=f"{text} ({default:g})")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from dataclasses import replace

    from glr_dist.config import load_config

    config = load_config(options.config, options.overrides)
    with results_folder(options, "plan-{}") as out:
        from glr_dist.planning import GPU, plan_step

        gpu = replace(
            GPU, rate=options.gpu_tflops * 1e12, bandwidth=options.bandwidth * 1e9, latency=options.latency * 1e-6
        )
        print(plan_step(config, out, options.actors, gpu))
    print(f"results  {out}")
    return 0
