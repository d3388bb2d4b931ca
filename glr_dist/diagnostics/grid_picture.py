"""The picture of a grid: two heatmaps of the cosine, whose colours also differ in grey print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glr_dist.diagnostics.pairs import Pair
from glr_dist.figures import figure_of

_COLOURS = "cividis"  # its lightness grows with the value, for any colour vision


def grid_figure(pairs: Sequence[Pair], chosen: Pair | None) -> Any:
    """Returns a figure of the cosine to the target and to the gradient at each σ; a frame marks the recommended pair.

    Args:
        pairs: the pairs of the whole grid.
        chosen: the recommended pair.
    """
    scales, copies = sorted({pair.scale for pair in pairs}), sorted({pair.copies for pair in pairs})
    figure = figure_of(3 + 2.2 * len(copies), 2.5 + 0.6 * len(scales))
    panels: tuple[tuple[str, Callable[[Pair], float]], ...] = (
        ("cosine to the target", lambda pair: pair.target_cosine.mean),
        ("cosine to the gradient at this σ", lambda pair: pair.cosine.mean),
    )
    image: Any = None
    for axes, (title, value) in zip(figure.subplots(1, 2), panels, strict=True):
        found = {(pair.scale, pair.copies): value(pair) for pair in pairs}
        rows = [[found[scale, number] for number in copies] for scale in scales]
        image = axes.imshow(rows, cmap=_COLOURS, vmin=0, vmax=1, origin="lower", aspect="auto")
        for row, scale in enumerate(scales):
            for column, number in enumerate(copies):
                cosine = found[scale, number]
                ink = "white" if cosine < 0.5 else "black"
                axes.text(column, row, f"{cosine:.3f}", ha="center", va="center", color=ink)
        if chosen is not None:
            _frame(axes, copies.index(chosen.copies), scales.index(chosen.scale))
        passes = {pair.copies: pair.forward_passes for pair in pairs}
        axes.set_xticks(range(len(copies)), [f"{number}\n{passes[number]:.1f} passes" for number in copies])
        axes.set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        axes.set(xlabel="copies K", ylabel="noise scale σ", title=title)
    figure.colorbar(image, ax=figure.axes, label="cosine")
    return figure


def _frame(axes: Any, column: int, row: int) -> None:
    from matplotlib.patches import Rectangle  # here: the import takes a while

    axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor="black", linewidth=3))
    axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor="white", linewidth=1.2))
