"""Cosine of each site's estimates against the forward passes of a step, for several options of the estimator."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from glr_dist.config import Config, Estimator, check_estimator
from glr_dist.config.estimator import UNIT_WISE
from glr_dist.diagnostics.estimates import (
    CHUNKS,
    Batch,
    Networks,
    cosines_of,
    draws_of,
    rebuilt,
    reference_of,
    relative_errors,
)
from glr_dist.errors import ConfigError
from glr_dist.figures import figure_of

OPTIONS = ("plain", "head auto", "unit by unit", "copies auto")
_COPIES = 100  # K of the sites that are not redrawn unit by unit, for `unit by unit`


@dataclass(frozen=True)
class Point:
    """Quality of one option at one budget.

    Attributes:
        option: entry of `OPTIONS`.
        budget: forward passes that a step may take.
        forward_passes: those that it takes.
        cosines: by site, mean and standard error.
        milliseconds: time of an estimate on this machine; for `copies auto` with its share of the first measurement.
    """

    option: str
    budget: float
    forward_passes: float
    cosines: dict[str, tuple[float, float]]
    milliseconds: float


@dataclass(frozen=True)
class AgainstPasses:
    """Result of `against_passes`; `str` gives the table.

    Attributes:
        reference: name of the reference estimator.
        reference_error: its relative error, by site.
        points: what was measured.
    """

    reference: str
    reference_error: dict[str, float]
    points: tuple[Point, ...]

    def __str__(self) -> str:
        sites = list(self.reference_error)
        errors = ", ".join(f"{site} {error:.4f}" for site, error in self.reference_error.items())
        lines = [f"reference {self.reference}; its relative error: {errors}"]
        lines += [f"{'option':<13}{'budget':>8}{'passes':>8}" + "".join(f"{site:>17}" for site in sites) + f"{'ms':>9}"]
        for point in self.points:
            cells = "".join(f"{mean:>8.4f} ± {error:.4f}" for mean, error in point.cosines.values())
            lines.append(
                f"{point.option:<13}{point.budget:>8g}{point.forward_passes:>8.2f}{cells}{point.milliseconds:>9.1f}"
            )
        return "\n".join(lines)


def against_passes(config: Config, budgets: Sequence[float]) -> AgainstPasses:
    """Measures the options at each budget, all on one batch and against one reference.

    `plain` has the greatest K that fits, one shared pass, and the head and redraws of the configuration; `head auto` is
    the same with that head; `unit by unit` moves one unit at a time wherever it can, with the greatest M that fits;
    `copies auto` allots the budget, with head and redraws chosen. An option is left out where a budget is too small.

    Args:
        config: the configuration; its section `diagnose` gives the batch, the draws and the reference.
        budgets: forward passes of a step.

    Raises:
        ConfigError: the configuration does not fit, or no budget is enough for `plain`.
    """
    networks, draws = Networks(config, None), config.diagnose.draws
    points = []
    total = CHUNKS + len(budgets) * len(OPTIONS) * draws
    with tqdm(total=total, disable=not sys.stderr.isatty(), desc="variance") as bar:
        batch = networks.batch(bar)
        tried = {(option, b): _estimator(config, networks, batch, option, b) for b in budgets for option in OPTIONS}
        if not any(tried["plain", budget] for budget in budgets):
            raise ConfigError(f"--passes: {max(budgets):g} are not enough for the fewest copies")
        name, reference = reference_of(config, networks.net, batch)
        for (option, budget), estimator in tried.items():
            if estimator is None:
                bar.update(draws)
                continue
            net = networks.net(config.model_copy(update={"estimator": estimator}))
            estimates, milliseconds = draws_of(net, batch, draws)
            cosines = {site: cosines_of(g, reference[site]) for site, g in estimates.items()}
            points.append(
                Point(
                    option,
                    budget,
                    net.cost(batch.x, batch.y, batch.loss)[1],
                    {site: (c.mean().item(), c.std().item() / draws**0.5) for site, c in cosines.items()},
                    milliseconds,
                )
            )
    return AgainstPasses(name, relative_errors(reference), tuple(points))


def _estimator(config: Config, networks: Networks, batch: Batch, option: str, budget: float) -> Estimator | None:
    """Returns the estimator of an option within a budget, or None if the budget is too small for it."""
    head = config.estimator.head if option == "plain" else "auto"
    redraw = "auto" if option in ("unit by unit", "copies auto") else config.estimator.redraw
    free = rebuilt(config.estimator, copies="auto", passes="auto", redraw=redraw, budget=budget, head=head)
    check_estimator(free, config.noise, config.training.loss)
    if option == "copies auto":
        return free
    net = networks.net(config.model_copy(update={"estimator": free}))
    try:
        step = net.bind(batch.x, batch.y, batch.loss)  # with the greatest K that fits
    except ConfigError:
        return None
    if option != "unit by unit":
        drawn = [step.copies[name] for name, how in net.ways.items() if how not in UNIT_WISE and step.copies[name]]
        return rebuilt(free, copies=drawn[0] if drawn else _COPIES, redraw=config.estimator.redraw)
    if not net.unit_wise:
        return None
    ways = {name: net.unit_wise[name].name if name in net.unit_wise else "auto" for name in net.ways}
    moved = rebuilt(free, copies=_COPIES, redraw=ways)
    cost = networks.net(config.model_copy(update={"estimator": moved})).cost(batch.x, batch.y, batch.loss)[1]
    return rebuilt(moved, passes=int(budget / cost)) if cost <= budget else None


def passes_figure(found: AgainstPasses) -> Any:
    """Returns a figure of the cosine of each site against the forward passes, one line per option."""
    sites = list(found.reference_error)
    figure = figure_of(max(5.0, 3.6 * len(sites)), 4)
    for axes, site in zip(figure.subplots(1, len(sites), squeeze=False)[0], sites, strict=True):
        for index, option in enumerate(OPTIONS):
            points = [point for point in found.points if point.option == option]
            axes.errorbar(
                [point.forward_passes for point in points],
                [point.cosines[site][0] for point in points],
                [point.cosines[site][1] for point in points],
                marker="os^D"[index],
                linestyle=("-", "--", ":", "-.")[index],
                capsize=3,
                label=option,
            )
        axes.set(xscale="log", xlabel="forward passes of a step", ylabel="cosine to the true gradient", title=site)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure
