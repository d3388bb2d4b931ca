"""Figures that need no display and leave matplotlib's global state alone."""

from __future__ import annotations

from typing import Any


def figure_of(width: float, height: float) -> Any:
    """An empty figure of a size in inches, laid out so that nothing overlaps; `savefig` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: the import takes a while
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
