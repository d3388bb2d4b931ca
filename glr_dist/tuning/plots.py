"""The pictures of a search: each field against what was measured, what the fields matter, the Pareto front.

Those of a population: each scale, and what was measured, against the epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glr_dist.figures import figure_of
from glr_dist.tuning.objectives import better_first
from glr_dist.tuning.record import Record, front, ordered
from glr_dist.tuning.settings import Search, Tune
from glr_dist.tuning.study import Study

_ENOUGH = 8  # finished trials that the importance of fields can be told from
_COLUMNS = 3


def draw(search: Search, records: Sequence[Record], path: Path) -> None:
    """Draws a panel for each field, one of their importance, and one of the first two objectives, into a PNG.

    Of a population: a panel for each scale, one for each objective, and one of the first two.
    """
    tune = search.tune
    finished = [record for record in records if record.status == "finished"]
    clean = "validation/accuracy"
    names = [*tune.objectives, *([clean] if clean not in tune.objectives else [])]
    panels: list[Any]
    if tune.algorithm == "pbt":
        panels = [lambda axes, field=field: _draw_scale(axes, search, records, field) for field in tune.space]
        panels += [lambda axes, name=name: _draw_measured(axes, tune, records, name) for name in names]
    else:
        panels = [lambda axes, field=field: _draw_field(axes, tune, records, field, names) for field in tune.space]
        if len(tune.space) > 1 and len(finished) >= _ENOUGH:
            study = Study(tune, search.base.model_dump(mode="json"), records)
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
    marks = {"stopped": "stopped early, grey" if tune.algorithm == "pbt" else "stopped early, hollow"}
    counts = Counter(record.status for record in records if record.status != "finished")
    said = [f"{count} {marks.get(status, status)}" for status, count in sorted(counts.items())]
    figure.suptitle(f"{'; '.join([f'{len(finished)} trials finished', *said])}; on the validation images")
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
        axes.set_xscale("log")
        _label_log(axes.xaxis)
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


def _draw_scale(axes: Any, search: Search, records: Sequence[Record], field: str) -> None:
    for record, style in _styled(search.tune, records):
        scales = search.scales(record.point, field, record.epochs)
        axes.step(range(record.epochs + 1), [*scales, *scales[-1:]], where="post", **style)
    if search.tune.space[field].kind == "loguniform":
        axes.set_yscale("log")
        _label_log(axes.yaxis)
    _finish_epochs(axes, field)


def _draw_measured(axes: Any, tune: Tune, records: Sequence[Record], name: str) -> None:
    for record, style in _styled(tune, records):
        shown = {epoch: figures[name] for epoch, figures in sorted(record.measured.items()) if name in figures}
        values = [100 * value if _is_share(name) else value for value in shown.values()]
        axes.plot(list(shown), values, marker="." if len(shown) < _ENOUGH else None, **style)
    _finish_epochs(axes, _label(name))


def _finish_epochs(axes: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epochs done", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


def _styled(tune: Tune, records: Sequence[Record]) -> list[tuple[Record, dict[str, Any]]]:
    """The trials that were measured, with the style of their lines, the best on top; each style is named once."""
    lines: list[tuple[Record, dict[str, Any]]] = []
    named: set[str] = set()
    measured = [record for record in records if record.measured]
    for place, record in enumerate(ordered(measured, tune.objectives)):
        label: str = record.status
        style: dict[str, Any] = {"color": "tab:gray", "alpha": 0.4, "linewidth": 1}
        if label == "finished":
            style = {"color": "tab:blue", "alpha": 0.6, "linewidth": 1}
            if not place:
                label, style = f"best, trial {record.number}", {"color": "tab:red", "linewidth": 2.5}
        lines.append((record, {**style, "label": None if label in named else label}))
        named.add(label)
    return lines[::-1]


def _label_log(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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
    axes.margins(0.08)  # room for the numbers
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _is_share(name: str) -> bool:
    return name.endswith("/accuracy")


def _label(name: str) -> str:
    return f"{name}, %" if _is_share(name) else name
