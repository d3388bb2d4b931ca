"""What a search leaves behind: the table, the best configuration ready to train, the Pareto front, plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from glr_dist import config
from glr_dist.errors import ConfigError
from glr_dist.files import write_atomically
from glr_dist.robustness.page import table as markdown_table
from glr_dist.tuning import plots
from glr_dist.tuning.record import Record, folder_of, front, ordered
from glr_dist.tuning.settings import Search
from glr_dist.tuning.space import SCHEDULE

TABLE = "trials.json"


def write_table(search: Search, records: Sequence[Record], out: Path) -> None:
    """Writes all trials whose turns have ended, the best first, as JSON."""
    names = search.tune.objectives
    records = [record for record in records if record.status != "started"]
    best_of_all = {record.number for record in front(records, names)}
    rows = [
        {
            **record.model_dump(mode="json"),
            "pareto": record.number in best_of_all,
            "folder": str(folder_of(out, record.number)),
        }
        for record in ordered(records, names)
    ]
    found = {"objectives": list(names), "trials": rows}
    write_atomically(out / TABLE, (json.dumps(found, indent=2) + "\n").encode())


def write(search: Search, records: Sequence[Record], out: Path) -> list[Path]:
    """Writes `trials.json`, `best.yaml`, with several objectives `pareto.yaml`, and the plots.

    Returns:
        The files.

    Raises:
        ConfigError: no trial was finished.
    """
    names = search.tune.objectives
    write_table(search, records, out)
    first = best(search, records)
    comment = f"# Trial {first.number} of {len(records)}: {_values(first, names)}, on the validation images.\n"
    write_atomically(out / "best.yaml", (comment + config.dump_config(search.settings(first.point))).encode())
    files = [out / TABLE, out / "best.yaml"]
    if len(names) > 1:
        rows = [
            {
                "trial": record.number,
                **{name: record.metrics[name] for name in names},
                "point": record.point,
                "folder": str(folder_of(out, record.number)),
            }
            for record in front(records, names)
        ]
        write_atomically(out / "pareto.yaml", yaml.safe_dump(rows, sort_keys=False).encode())
        files.append(out / "pareto.yaml")
    plots.draw(search, records, out / "search.png")
    return [*files, out / "search.png"]


def best(search: Search, records: Sequence[Record]) -> Record:
    """The finished trial that is best by the first objective.

    Raises:
        ConfigError: none is finished.
    """
    first = ordered(records, search.tune.objectives)[0]
    if first.status != "finished":
        told = next((record for record in records if record.reason), first)
        raise ConfigError(f"no trial could be finished; trial {told.number}: {told.reason or told.status}")
    return first


def table(search: Search, records: Sequence[Record]) -> str:
    """The trials, the best first; with several objectives a star marks the Pareto front."""
    names, several = search.tune.objectives, len(search.tune.objectives) > 1
    best_of_all = {record.number for record in front(records, names)} if several else set()
    fields = [*search.tune.space, *([SCHEDULE] if search.tune.algorithm == "pbt" else [])]
    rows = [
        [
            f"{record.number}{' *' if record.number in best_of_all else ''}",
            *(_short(record.point.get(field, {})) for field in fields),
            *(f"{record.metrics[name]:.4f}" if name in record.metrics else "–" for name in names),
            str(record.epochs),
            f"{record.seconds:.1f}",
            f"{record.status}: {record.reason}" if record.reason else record.status,
        ]
        for record in ordered(records, names)
    ]
    return "\n".join(markdown_table(["trial", *fields, *names, "epochs", "seconds", "status"], rows))


def described(record: Record, names: Sequence[str]) -> str:
    """A trial in a line."""
    point = "  ".join(f"{field} {_short(value)}" for field, value in record.point.items())
    said = f"{record.status} ({record.reason})" if record.reason else record.status
    return "  ".join(part for part in (point, _values(record, names), f"{record.seconds:.1f} s", said) if part)


def _values(record: Record, names: Sequence[str]) -> str:
    return "  ".join(f"{name} {record.metrics[name]:.4f}" for name in names if name in record.metrics)


def _short(value: Any, inner: str = "{}") -> str:
    """A value in a few characters; `inner` goes around a mapping."""
    if isinstance(value, Mapping):
        return inner.format(", ".join(f"{key}: {_short(part, '{{{}}}')}" for key, part in value.items()))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
