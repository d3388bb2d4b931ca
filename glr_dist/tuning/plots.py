"""Plots of a search: metrics against each field, importance of the fields, Pareto front.

For a population: each scale and each metric against the epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from glr_dist.figures import figure_of
from glr_dist.tuning.algorithms import ALGORITHMS
from glr_dist.tuning.objectives import cost
from glr_dist.tuning.ranking import pareto_front, ranked
from glr_dist.tuning.search_config import Search, Tune
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial_record import TrialRecord

_MIN_TRIALS = 8  # finished trials that an estimate of the importances needs
_MAX_MARKED = 8  # curves with fewer points have markers
_COLUMNS = 3
_CLEAN = "validation/accuracy"  # drawn even if it is not an objective

Panel = Callable[[Any], None]


def search_figure(search: Search, records: Sequence[TrialRecord]) -> Any:
    """Returns the figure of a search.

    The panels are one per field, the importances, and the first two objectives against each other. For a population:
    one per scale, one per metric, and the first two objectives.
    """
    panels = _panels(search, records)
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = figure_of(6 * columns, 4.5 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    figure.suptitle(_title(search.tune, records))
    return figure


def _panels(search: Search, records: Sequence[TrialRecord]) -> list[Panel]:
    """Returns the functions that draw the panels, each into its axes."""
    tune = search.tune
    finished = [record for record in records if record.status == "finished"]
    names = [*tune.objectives, *([_CLEAN] if _CLEAN not in tune.objectives else [])]
    panels: list[Panel]
    if ALGORITHMS[tune.algorithm].population:
        panels = [partial(_draw_scale, search=search, records=records, field=field) for field in tune.space]
        panels += [partial(_draw_measured, tune=tune, records=records, name=name) for name in names]
    else:
        panels = [partial(_draw_field, tune=tune, records=records, field=field, names=names) for field in tune.space]
        if len(tune.space) > 1 and len(finished) >= _MIN_TRIALS:
            study = Study(tune, search.base.model_dump(mode="json"), records)
            panels.append(partial(_draw_importance, tune=tune, study=study))
    if len(tune.objectives) > 1:
        panels.append(partial(_draw_front, finished=finished, names=tune.objectives))
    return panels


def _title(tune: Tune, records: Sequence[TrialRecord]) -> str:
    early = "grey" if ALGORITHMS[tune.algorithm].population else "hollow"
    words = {"stopped": f"stopped early ({early})"}
    counts = Counter(record.status for record in records if record.status != "finished")
    others = [f"{count} {words.get(status, status)}" for status, count in sorted(counts.items())]
    finished = sum(record.status == "finished" for record in records)
    return f"{', '.join([f'{finished} trials finished', *others])}; validation images"


def _draw_field(axes: Any, tune: Tune, records: Sequence[TrialRecord], field: str, names: Sequence[str]) -> None:
    """Draws metrics against the values of a field; losses have their own axis."""
    allowed = tune.space[field]
    other = axes.twinx() if any(_is_accuracy(n) for n in names) and not all(_is_accuracy(n) for n in names) else axes
    for colour, name in enumerate(names):
        where = axes if _is_accuracy(name) else other
        for status, face in (("finished", f"C{colour}"), ("stopped", "none")):
            shown = [r for r in records if r.status == status and name in r.metrics]
            x = [allowed.listed.index(r.point[field]) if allowed.listed else r.point[field] for r in shown]
            y = [100 * r.metrics[name] if _is_accuracy(name) else r.metrics[name] for r in shown]
            label = name if status == "finished" else None
            if any(name in r.margins for r in shown):
                margins = [(100 if _is_accuracy(name) else 1) * r.margins.get(name, 0.0) for r in shown]
                where.errorbar(x, y, margins, fmt="none", ecolor=f"C{colour}", alpha=0.6, capsize=3)
            where.scatter(x, y, 36, facecolors=face, edgecolors=f"C{colour}", label=label)
    if allowed.kind == "loguniform":
        axes.set_xscale("log")
        _label_log(axes.xaxis)
    elif allowed.listed is not None:
        axes.set_xticks(range(len(allowed.listed)), [str(value) for value in allowed.listed])
        axes.margins(x=0.2)
    if all(_is_accuracy(name) for name in names) or other is not axes:
        axes.set_ylabel("accuracy, %")
    if other is not axes:
        other.set_ylabel(", ".join(name for name in names if not _is_accuracy(name)))
    axes.set_xlabel(field)
    axes.grid(alpha=0.3)
    handles = [handle for each in dict.fromkeys((axes, other)) for handle in each.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)


def _draw_scale(axes: Any, search: Search, records: Sequence[TrialRecord], field: str) -> None:
    for record, style in _styled(search.tune, records):
        scales = search.scales(record.point, field, record.epochs)
        axes.step(range(record.epochs + 1), [*scales, *scales[-1:]], where="post", **style)
    if search.tune.space[field].kind == "loguniform":
        axes.set_yscale("log")
        _label_log(axes.yaxis)
    _finish_epochs(axes, field)


def _draw_measured(axes: Any, tune: Tune, records: Sequence[TrialRecord], name: str) -> None:
    for record, style in _styled(tune, records):
        shown = {epoch: metrics[name] for epoch, metrics in sorted(record.measured.items()) if name in metrics}
        values = [100 * value if _is_accuracy(name) else value for value in shown.values()]
        axes.plot(list(shown), values, marker="." if len(shown) < _MAX_MARKED else None, **style)
    _finish_epochs(axes, _label(name))


def _finish_epochs(axes: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


def _styled(tune: Tune, records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, dict[str, Any]]]:
    """Returns the measured trials with the style of their lines, the best drawn last; each style has one label."""
    lines: list[tuple[TrialRecord, dict[str, Any]]] = []
    labelled: set[str] = set()
    measured = [record for record in records if record.measured]
    for place, record in enumerate(ranked(measured, tune.objectives)):
        label: str = record.status
        style: dict[str, Any] = {"color": "tab:gray", "alpha": 0.4, "linewidth": 1}
        if label == "finished":
            style = {"color": "tab:blue", "alpha": 0.6, "linewidth": 1}
            if not place:
                label, style = f"best, trial {record.number}", {"color": "tab:red", "linewidth": 2.5}
        lines.append((record, {**style, "label": None if label in labelled else label}))
        labelled.add(label)
    return lines[::-1]


def _label_log(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_importance(axes: Any, tune: Tune, study: Study) -> None:
    """Draws the importance of each field as bars, one per objective."""
    fields, width = list(tune.space), 0.8 / len(tune.objectives)
    for number, name in enumerate(tune.objectives):
        importances = study.importances(number)
        places = [place + number * width for place in range(len(fields))]
        axes.barh(places, [importances.get(field, 0.0) for field in fields], width, label=name)
    axes.set_yticks([place + 0.4 - width / 2 for place in range(len(fields))], fields)
    axes.set(xlabel="fraction of the objective's variance (fANOVA)", xlim=(0, 1), title="importance")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8)


def _draw_front(axes: Any, finished: Sequence[TrialRecord], names: Sequence[str]) -> None:
    """Draws the first two objectives against each other, and the Pareto front of these two."""
    first, second = names[:2]
    scales = [100 if _is_accuracy(name) else 1 for name in (first, second)]

    def points(records: Sequence[TrialRecord]) -> list[list[float]]:
        return [[scale * r.metrics[n] for r in records] for scale, n in zip(scales, (first, second), strict=True)]

    front = sorted(pareto_front(finished, (first, second)), key=lambda record: cost(first, record.metrics[first]))
    axes.scatter(*points(finished), 36, color="tab:gray", label="trials")
    axes.plot(*points(front), "o-", color="tab:red", drawstyle="default", label="Pareto front")
    for record in front:
        at = [scale * record.metrics[name] for scale, name in zip(scales, (first, second), strict=True)]
        axes.annotate(str(record.number), at, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(xlabel=_label(first), ylabel=_label(second), title="Pareto front, labelled with trial numbers")
    axes.margins(0.08)  # room for the labels
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _is_accuracy(name: str) -> bool:
    return name.endswith("/accuracy")


def _label(name: str) -> str:
    return f"{name}, %" if _is_accuracy(name) else name
