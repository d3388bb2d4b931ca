"""The pictures of a search: each field against what was measured, what the fields matter, the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glr_dist.figures import figure_of
from glr_dist.tuning.objectives import better_first
from glr_dist.tuning.record import Record, front
from glr_dist.tuning.settings import Tune
from glr_dist.tuning.study import Study

_ENOUGH = 8  # finished trials that the importance of fields can be told from
_COLUMNS = 3


def draw(tune: Tune, records: Sequence[Record], study: Study, path: Path) -> None:
    """Draws a panel for each field, one of their importance, and one of the first two objectives, into a PNG."""
    finished = [record for record in records if record.status == "finished"]
    clean = "validation/accuracy"
    names = [*tune.objectives, *([clean] if clean not in tune.objectives else [])]
    panels: list[Any] = [
        lambda axes, field=field: _draw_field(axes, tune, records, field, names) for field in tune.space
    ]
    if len(tune.space) > 1 and len(finished) >= _ENOUGH:
        panels.append(lambda axes: _draw_importance(axes, tune, study))
    if len(tune.objectives) > 1:
        panels.append(lambda axes: _draw_front(axes, finished, tune.objectives))
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = figure_of(6 * columns, 4.5 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    stopped = sum(record.status == "stopped" for record in records)
    said = f"{len(finished)} trials finished" + (f", {stopped} stopped early (hollow)" if stopped else "")
    figure.suptitle(f"{said}; on the validation images")
    figure.savefig(path, dpi=120)


def _draw_field(axes: Any, tune: Tune, records: Sequence[Record], field: str, names: Sequence[str]) -> None:
    """What was measured against the values of a field; losses have an axis of their own."""
    allowed = tune.space[field]
    other = axes.twinx() if any(_is_share(n) for n in names) and not all(_is_share(n) for n in names) else axes
    for colour, name in enumerate(names):
        where = axes if _is_share(name) else other
        for status, face in (("finished", f"C{colour}"), ("stopped", "none")):
            shown = [r for r in records if r.status == status and name in r.metrics]
            x = [allowed.listed.index(r.point[field]) if allowed.listed else r.point[field] for r in shown]
            y = [100 * r.metrics[name] if _is_share(name) else r.metrics[name] for r in shown]
            label = name if status == "finished" else None
            where.scatter(x, y, 36, facecolors=face, edgecolors=f"C{colour}", label=label)
    if allowed.kind == "loguniform":
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif allowed.listed is not None:
        axes.set_xticks(range(len(allowed.listed)), [str(value) for value in allowed.listed])
        axes.margins(x=0.2)
    if all(_is_share(name) for name in names) or other is not axes:
        axes.set_ylabel("accuracy, %")
    if other is not axes:
        other.set_ylabel(", ".join(name for name in names if not _is_share(name)))
    axes.set_xlabel(field)
    axes.grid(alpha=0.3)
    handles = [handle for each in dict.fromkeys((axes, other)) for handle in each.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)


def _draw_importance(axes: Any, tune: Tune, study: Study) -> None:
    """Bars side by side, one for each objective."""
    fields, width = list(tune.space), 0.8 / len(tune.objectives)
    for number, name in enumerate(tune.objectives):
        found = study.importances(number)
        places = [place + number * width for place in range(len(fields))]
        axes.barh(places, [found.get(field, 0.0) for field in fields], width, label=name)
    axes.set_yticks([place + 0.4 - width / 2 for place in range(len(fields))], fields)
    axes.set(xlabel="share of the objective's variance (fANOVA)", xlim=(0, 1), title="importance")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8)


def _draw_front(axes: Any, finished: Sequence[Record], names: Sequence[str]) -> None:
    """The first two objectives against each other, and the trials that none beats in these two."""
    first, second = names[:2]
    scales = [100 if _is_share(name) else 1 for name in (first, second)]

    def points(records: Sequence[Record]) -> list[list[float]]:
        return [[scale * r.metrics[n] for r in records] for scale, n in zip(scales, (first, second), strict=True)]

    best = sorted(front(finished, (first, second)), key=lambda record: better_first(first, record.metrics[first]))
    axes.scatter(*points(finished), 36, color="tab:gray", label="trials")
    axes.plot(*points(best), "o-", color="tab:red", drawstyle="default", label="Pareto front")
    for record in best:
        at = [scale * record.metrics[name] for scale, name in zip(scales, (first, second), strict=True)]
        axes.annotate(str(record.number), at, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(xlabel=_label(first), ylabel=_label(second), title="Pareto front, with the trials' numbers")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _is_share(name: str) -> bool:
    return name.endswith("/accuracy")


def _label(name: str) -> str:
    return f"{name}, %" if _is_share(name) else name
