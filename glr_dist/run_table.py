"""A table of the runs in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glr_dist.claims import is_claimed
from glr_dist.errors import UserError
from glr_dist.runs import RunFolder
from glr_dist.text import one_line

_DEPTH = 4  # folders below the folder of the runs
_COLUMNS = ("run", "data", "model", "estimator", "loss", "accuracy", "robust", "epochs", "state")


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """Returns the runs in a folder and the folders in it, sorted by path.

    Returns:
        For each run its path relative to the folder, data set, model, estimator, loss, number of epochs, state
        ("finished", "training", "stopped" or "damaged"), and where they exist its test accuracy or else its test loss,
        and the lowest robust accuracy of its newest report.
    """
    return [_row(path, folder) for path in _folders(folder, _DEPTH)]


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the runs as a table of text."""
    cells = [_COLUMNS, *(tuple(_cell(row.get(column)) for column in _COLUMNS) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if RunFolder(folder).exists:
        yield folder
    elif depth:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not _is_left_out(path)):
            yield from _folders(inner, depth - 1)


def _is_left_out(path: Path) -> bool:
    """True for hidden folders, and for links, which may lead round in a circle."""
    return path.name.startswith(".") or path.is_symlink()


def _row(path: Path, folder: Path) -> dict[str, Any]:
    files = RunFolder(path)
    row: dict[str, Any] = {"run": str(path.relative_to(folder))}
    try:
        config, metrics = files.config(), files.metrics()
        epoch = metrics[-1]["epoch"] if metrics else 0
    except (UserError, ValueError, OSError, TypeError, KeyError, AttributeError) as error:
        return row | {"state": "damaged", "error": one_line(error)}
    row |= {
        "data": config.data.name,
        "model": config.model.name,
        "estimator": config.estimator.name,
        "loss": config.training.loss,
        "epochs": f"{epoch}/{config.training.epochs}",
        "seed": config.seed,
    }
    try:
        summary = dict(files.summary())
    except (OSError, ValueError, TypeError):
        state = "training" if is_claimed(path) else "stopped"
        last = metrics[-1] if metrics else {}
        return row | {"state": state, "validation_accuracy": last.get("validation_accuracy")}
    row |= {"state": "finished", "accuracy": summary.get("test_accuracy"), "test_loss": summary.get("test_loss")}
    reports = sorted((path / "robustness").glob("*.json"), key=lambda file: file.stat().st_mtime)
    if reports and (robust := _robust(reports[-1])) is not None:
        row |= {"robust": robust, "report": reports[-1].stem}
    return row


def _robust(report: Path) -> float | None:
    """Returns the lowest robust accuracy of a report; None if it has none."""
    try:
        entries = json.loads(report.read_text(encoding="utf-8")).get("robust_accuracies", [])
        rates = [entry["rate"]["accuracy"] for entry in entries if entry.get("rate")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return min(rates, default=None)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
