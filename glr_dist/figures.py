"""Figures that need no display and do not change matplotlib's global state."""

from __future__ import annotations

from typing import Any


def figure_of(width: float, height: float) -> Any:
    """Returns an empty figure of a size in inches whose parts do not overlap; `savefig` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: the import takes a while
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
