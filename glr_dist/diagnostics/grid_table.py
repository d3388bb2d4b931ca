"""The table of a grid, no wider than the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glr_dist.diagnostics.pairs import Cosine, Pair, advice

# Heads, widths and cells; the last columns are left out first.
_COLUMNS: tuple[tuple[str, int, Callable[[Pair], str]], ...] = (
    ("σ", 8, lambda pair: f"{pair.scale:g}"),
    ("K", 7, lambda pair: str(pair.copies)),
    ("target cosine", 18, lambda pair: _shown(pair.target_cosine)),
    ("passes", 9, lambda pair: f"{pair.forward_passes:.1f}"),
    ("cosine", 18, lambda pair: _shown(pair.cosine)),
    ("variance", 10, lambda pair: f"{pair.variance:.3g}"),
    ("ms", 8, lambda pair: f"{pair.milliseconds:.1f}"),
)
_FEWEST = 4  # columns that are never left out


def grid_table(pairs: Sequence[Pair], chosen: Pair | None, *, clean: bool, columns: int | None = None) -> list[str]:
    """Returns the lines of the table, where `*` marks the recommended pair, and the recommendation.

    Args:
        pairs: the pairs.
        chosen: the recommended pair.
        clean: True if the target is the gradient without noise.
        columns: width of the terminal; None: any width.
    """
    shown = list(_COLUMNS)
    while columns is not None and len(shown) > _FEWEST and sum(width for _, width, _ in shown) + 2 > columns:
        shown.pop()
    lines = ["".join(f"{head:>{width}}" for head, width, _ in shown)]
    for pair in pairs:
        mark = " *" if pair is chosen else ""
        lines.append("".join(f"{cell(pair):>{width}}" for _, width, cell in shown) + mark)
    return [*lines, advice(pairs, chosen, clean=clean)]


def _shown(cosine: Cosine) -> str:
    return f"{cosine.mean:.4f} ± {cosine.error:.4f}"
