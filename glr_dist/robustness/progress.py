"""Progress of an evaluation on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.ledger import Ledger


class Progress:
    """A progress bar over the blocks; without a terminal, one line for each finished condition.

    Args:
        ledgers: the ledgers of the evaluation.
        passing: show nothing but a bar, which vanishes at the end.
    """

    def __init__(self, ledgers: Sequence[Ledger], *, passing: bool = False) -> None:
        self._ledgers, self._passing = ledgers, passing
        self._printed: set[tuple[Ledger, str]] = set()
        total = sum(ledger.missing for ledger in ledgers)
        silent = not sys.stderr.isatty()
        self._bar = tqdm(total=total, disable=silent, unit="block", dynamic_ncols=True, leave=not passing)

    def update(self, ledger: Ledger, condition: Condition) -> None:
        """Reports that one more block of a condition is measured."""
        if not self._bar.disable:
            self._bar.set_postfix_str(condition.label, refresh=False)
            # The total shrinks when an attack is refused: its other blocks are never measured.
            self._bar.total = self._bar.n + 1 + sum(each.missing for each in self._ledgers)
            self._bar.update()
            return
        if self._passing:
            return
        pending = any(ledger.is_pending(condition, block) for block in ledger.blocks(condition))
        if not pending and (ledger, condition.label) not in self._printed:
            self._printed.add((ledger, condition.label))  # blocks of a refused attack may still be in flight
            blocks = list(ledger.measurements[condition.label].values())
            refused = next((block.reason for block in blocks if block.reason), None)
            accuracy = sum(block.correct.count("1") for block in blocks) / condition.examples
            print(f"{condition.label:<32}{refused or f'accuracy {accuracy:.4f}'}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
