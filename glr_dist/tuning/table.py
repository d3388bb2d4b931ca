"""Trials as text: the table of a search, and one line per trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glr_dist.robustness.page import table as markdown_table
from glr_dist.text import shortened
from glr_dist.tuning.algorithms import ALGORITHMS
from glr_dist.tuning.points import SCHEDULE
from glr_dist.tuning.ranking import pareto_front, ranked
from glr_dist.tuning.search_config import Search
from glr_dist.tuning.trial_record import TrialRecord

_MAX_REASON = 80  # characters in the table; trials.json has the whole reason


def trial_table(search: Search, records: Sequence[TrialRecord]) -> str:
    """Returns the trials as a table, the best first; with several objectives a star marks the Pareto front."""
    names, several = search.tune.objectives, len(search.tune.objectives) > 1
    front = {record.number for record in pareto_front(records, names)} if several else set()
    population = ALGORITHMS[search.tune.algorithm].population
    fields = [*search.tune.space, *([SCHEDULE] if population else [])]
    rows = [
        [
            f"{record.number}{' *' if record.number in front else ''}",
            *(_short(record.point.get(field, {})) for field in fields),
            *(_value(record, name) if name in record.metrics else "–" for name in names),
            str(record.epochs),
            f"{record.seconds:.1f}",
            f"{record.status}: {shortened(record.reason, _MAX_REASON)}" if record.reason else record.status,
        ]
        for record in ranked(records, names)
    ]
    return "\n".join(markdown_table(["trial", *fields, *names, "epochs", "seconds", "status"], rows))


def trial_line(record: TrialRecord, objectives: Sequence[str]) -> str:
    """Returns a trial's point, objectives, seconds and status as one line."""
    status = f"{record.status} ({record.reason})" if record.reason else record.status
    parts = (point_line(record), objectives_line(record, objectives), f"{record.seconds:.1f} s", status)
    return "  ".join(part for part in parts if part)


def point_line(record: TrialRecord) -> str:
    """Returns the values of a trial's searched fields as one line."""
    return "  ".join(f"{field} {_short(value)}" for field, value in record.point.items())


def point_name(record: TrialRecord) -> str:
    """Returns the values of a trial's searched fields as a name, e.g. "noise.scale=0.5, noise.law=laplace"."""
    return ", ".join(f"{field}={_short(value, '{{{}}}')}" for field, value in record.point.items())


def objectives_line(record: TrialRecord, objectives: Sequence[str]) -> str:
    """Returns the objectives of a trial as one line."""
    return "  ".join(f"{name} {_value(record, name)}" for name in objectives if name in record.metrics)


def _value(record: TrialRecord, name: str) -> str:
    """Returns a metric with its margin, if it is a mean over seeds."""
    margin = f" ± {record.margins[name]:.4f}" if name in record.margins else ""
    return f"{record.metrics[name]:.4f}{margin}"


def _short(value: Any, inner: str = "{}") -> str:
    """Returns a value in a few characters; the format `inner` surrounds a mapping."""
    if isinstance(value, Mapping):
        return inner.format(", ".join(f"{key}: {_short(part, '{{{}}}')}" for key, part in value.items()))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
