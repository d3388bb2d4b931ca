"""Figures that need no display and do not change matplotlib's global state, and their files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glr_dist.text import one_line

_DPI = 120


def figure_of(width: float, height: float) -> Any:
    """Returns an empty figure of a size in inches whose parts do not overlap; `draw` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: the import takes a while
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw(path: Path, figure: Callable[[], Any]) -> bool:
    """Draws a figure as PNG, and as PDF beside it; returns whether it succeeded, and prints a warning if not.

    Pictures are drawn last: whatever matplotlib or its settings do must not end a command that has its results.

    Args:
        path: the PNG.
        figure: returns the figure.
    """
    try:
        drawn = figure()
        drawn.savefig(path, dpi=_DPI)
        drawn.savefig(pdf_of(path), metadata={"CreationDate": None})  # equal figures give equal files
    except Exception as error:
        print(f"warning: {path}: cannot be drawn ({one_line(error)})", file=sys.stderr)
        return False
    return True


def pdf_of(path: Path) -> Path:
    """Returns the path of the PDF beside a PNG."""
    return path.with_suffix(".pdf")
