"""Predictions of a trained run for files of the user's, as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glr_dist.data.inputs import inputs_of
from glr_dist.errors import ConfigError
from glr_dist.imported import place_of
from glr_dist.text import shortened
from glr_dist.training.trained_run import TrainedRun
from glr_dist.trees import taken

_BATCH = 500
_CELL = 100  # characters of a value in a table of text; the other forms have all of it


def predictions(run: TrainedRun, words: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns the predictions for the inputs in files.

    Args:
        run: the trained run.
        words: see `glr_dist.data.inputs.inputs_of`.

    Returns:
        For each input its name as "input", and either the predicted "class" with its "score" (the softmax), the classes
        of its tokens or pixels as "classes", or the predicted values as "value".

    Raises:
        ConfigError: a file is missing or damaged, or its inputs have another shape.
    """
    names, x = inputs_of(words, run.config.data, run.data.train, run.config.code)
    try:
        outputs = torch.cat([run(taken(x, slice(i, i + _BATCH))).cpu() for i in range(0, len(names), _BATCH)])
    except (IndexError, RuntimeError, ValueError) as error:  # of the network, such as a token that it does not know
        raise ConfigError(f"{words[0]}: {run.config.model.name} refuses its inputs {place_of(error)}") from None
    if run.data.of_classes and outputs.dim() > 2:
        found = run.classes_of(outputs).tolist()
        return [{"input": name, "classes": each} for name, each in zip(names, found, strict=True)]
    if not (run.data.of_classes and outputs.dim() == 2):
        return [
            {"input": name, "value": output.squeeze().tolist()} for name, output in zip(names, outputs, strict=True)
        ]
    scores, classes = outputs.softmax(-1).max(-1)
    known = run.data.names
    return [
        {"input": name, "class": known[number] if known else number, "score": round(score, 6)}
        for name, number, score in zip(names, classes.tolist(), scores.tolist(), strict=True)
    ]


def written(rows: Sequence[dict[str, Any]], form: str) -> str:
    """Returns predictions as "json", "csv" or a "table" of text."""
    if form == "json":
        return json.dumps(list(rows), indent=2)
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    cells = [tuple(rows[0]), *(tuple(shortened(str(value), _CELL) for value in row.values()) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
