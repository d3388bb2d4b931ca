"""`glr-dist config`."""

from __future__ import annotations

import argparse

from glr_dist.cli.arguments import add_config

HELP = "print the resolved configuration, or search, with every default"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(command)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.config import Config, build, dump, dump_config, overridden, read

    values = overridden(read(options.config), options.overrides)
    if "tune" not in values:
        print(dump_config(build(Config, values)), end="")
        return 0
    from glr_dist.tuning.search_config import load_search

    search = load_search(options.config, options.overrides)
    shown = search.base.model_dump(mode="json")
    given = search.values.get("estimator") or {}
    shown["estimator"]["sampler"] = given.get("sampler", "auto")  # each trial resolves `auto` for itself
    tune = search.tune.model_dump(mode="json", exclude_none=True)
    print(dump({**shown, "tune": tune}), end="")
    return 0
