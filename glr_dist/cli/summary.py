"""`glr-dist summary`."""

from __future__ import annotations

import argparse

from glr_dist.cli.arguments import add_config

HELP = "print the sites of a network, what their redraws cost, and how each parameter gets its gradient"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.config import load_config

    config = load_config(options.config, options.overrides)
    from glr_dist.build import device_of, loss_of, network_of
    from glr_dist.data import load

    dataset, device = load(config.data, config.code), device_of(config.execution)
    net = network_of(config, dataset, device)
    print(net.summary(dataset.train.to(device).batch(slice(0, 2))[0], loss_of(config)))
    return 0
