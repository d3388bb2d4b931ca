"""The lines that describe a run: those that its configuration settles at once, and those of the run once it is loaded.

Importing torch takes seconds, so `expected` does without it. `loaded` says the same of the run itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glr_dist.cli.output import show
from glr_dist.text import shortened

if TYPE_CHECKING:
    from glr_dist.config import Config, Data, Execution, Tracking
    from glr_dist.training.trainer import Trainer
    from glr_dist.tuning.search_config import Search

_LOADING = "loading"  # in place of what only the loaded run can tell

Lines = Mapping[str, str | None]  # name -> value; None: only the loaded run can tell


def show_tracking(tracking: Tracking) -> None:
    """Prints the address of the tracking server, if runs are tracked."""
    from glr_dist.tracking.location import is_tracked, tracking_uri
    from glr_dist.uris import without_credentials

    if is_tracked(tracking):
        show("tracking", f"{without_credentials(tracking_uri(tracking))}, {tracking.experiment}")


def show_lines(lines: Lines) -> None:
    """Prints the lines of a run or a search that is not loaded yet."""
    for name, line in lines.items():
        show(name, line or _LOADING)


def show_loaded(trainer: Trainer, shown: Lines) -> None:
    """Prints the lines of a loaded run, except those that were shown before it was loaded."""
    for name, line in loaded(trainer).items():
        if shown.get(name) != line:
            show(name, line)
    for note in trainer.notes:
        show("note", note)


def expected(config: Config) -> dict[str, str | None]:
    """Returns the lines of a run as far as its configuration settles them.

    Raises:
        ConfigError: this machine does not have the device, or a split of the data would be empty.
    """
    from glr_dist.execution.device import known_device

    device = _of_workers(config.execution) or known_device(config.execution)
    return {"device": device and f"{device}, {config.execution.kind}", **_sizes(config)}


def loaded(trainer: Trainer) -> dict[str, str]:
    """Returns the lines of a loaded run."""
    execution = trainer.config.execution
    sizes = {"training": len(trainer.train), "validation": len(trainer.validation), "test": len(trainer.test)}
    return {
        "device": f"{_of_workers(execution) or trainer.device}, {execution.kind}",
        "data": _data(trainer.config.data, sizes, "images" if trainer.of_images else "examples"),
        "parameters": f"{sum(parameter.numel() for parameter in trainer.net.model.parameters()):,}",
        "sites": shortened(", ".join(site.name for site in trainer.net.network.sites), 100),
    }


def of_search(search: Search) -> dict[str, str]:
    """Returns the lines of a search that its file settles: those of every trial, and the number of trials.

    Raises:
        ConfigError: a split of the data would be empty.
    """
    tune = search.tune
    searched = {field.partition(".")[0] for field in tune.space}
    sizes = {} if "data" in searched else _sizes(search.base)
    if "model" in searched:
        sizes.pop("parameters", None)
    seeds = f", {tune.seeds} seeds each" if tune.seeds > 1 else ""
    return {
        "device": f"{'cuda' if tune.gpus_per_trial else 'cpu'}, {'layers' if tune.actors_per_trial else 'inline'}",
        **{name: line for name, line in sizes.items() if line is not None},
        "trials": f"{tune.number:,} by {tune.algorithm}{seeds}",
    }


def _sizes(config: Config) -> dict[str, str | None]:
    from glr_dist.config import Model
    from glr_dist.sizes import parameter_count, split_sizes

    sizes, model = split_sizes(config.data), config.model
    parameters = parameter_count(model, config.data) if isinstance(model, Model) else None
    return {
        "data": None if sizes is None else _data(config.data, sizes),
        "parameters": None if parameters is None else f"{parameters:,}",
    }


def _of_workers(execution: Execution) -> str | None:
    """Returns the device of the workers of `replicas`; None for another kind."""
    if execution.kind != "replicas":
        return None
    return "cuda" if execution.gpus_per_actor else "cpu"


def _data(data: Data, sizes: Mapping[str, int], kind: str = "images") -> str:
    return f"{data.name}: {', '.join(f'{number:,} {part}' for part, number in sizes.items())} {kind}"
