"""The ledger of an evaluation: finished blocks, in memory and on disk, so that a stopped evaluation can continue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.journal import Journal, line_of
from glr_dist.robustness.measurement import Measurement


class Ledger:
    """The measurements of one subject, block by block.

    Args:
        conditions: all conditions of the evaluation.
        block: number of images per block.
        journal: where measurements are appended.

    Attributes:
        measurements: label of a condition -> block -> measurement.
    """

    def __init__(self, conditions: Sequence[Condition], block: int, journal: Journal) -> None:
        self.conditions = conditions
        self.measurements: dict[str, dict[int, Measurement]] = {condition.label: {} for condition in conditions}
        self._block, self._journal = block, journal
        self._refused: set[str] = set()  # labels of attacks that met a block that they cannot test

    @classmethod
    def open(cls, path: Path, fingerprint: str, conditions: Sequence[Condition], block: int) -> Ledger:
        """Opens the ledger at `path`; continues the existing one if it has the same fingerprint.

        A damaged line is ignored, so its block is measured again.

        Args:
            path: the ledger's file.
            fingerprint: digest of everything that determines the measurements.
            conditions: all conditions of the evaluation.
            block: number of images per block.

        Raises:
            OSError: the file cannot be written.
        """
        sizes = {condition.label: condition.examples for condition in conditions}
        journal, entries = Journal.open(path, fingerprint, lambda entry: _fits(entry, sizes, block))
        ledger = cls(conditions, block, journal)
        for label, number, values in entries:
            ledger._keep(label, number, Measurement(**values))
        return ledger

    @property
    def missing(self) -> int:
        """Number of blocks that are still to be measured."""
        open_conditions = (c for c in self.conditions if c.label not in self._refused)
        return sum(len(self.blocks(c)) - len(self.measurements[c.label]) for c in open_conditions)

    def blocks(self, condition: Condition) -> range:
        """Returns the block numbers of a condition."""
        return range(-(-condition.examples // self._block))

    def is_pending(self, condition: Condition, block: int) -> bool:
        """Returns whether a block is still to be measured. After a refusal, no block of the attack is."""
        return block not in self.measurements[condition.label] and condition.label not in self._refused

    def add(self, condition: Condition, block: int, measurement: Measurement) -> None:
        """Records the measurement of a block, in memory and on disk."""
        self._keep(condition.label, block, measurement)
        self._journal.append(_entry(condition.label, block, measurement))

    def in_order(self) -> dict[str, list[Measurement]]:
        """Returns the measurements of each condition in the order of the blocks."""
        return {label: [blocks[number] for number in sorted(blocks)] for label, blocks in self.measurements.items()}

    def remove(self) -> None:
        """Closes and deletes the file."""
        self._journal.remove()

    def _keep(self, label: str, block: int, measurement: Measurement) -> None:
        self.measurements[label][block] = measurement
        if measurement.reason:
            self._refused.add(label)


def _fits(entry: Any, sizes: dict[str, int], block: int) -> bool:
    """Returns whether an entry of a ledger's file is the measurement of a block of this evaluation."""
    try:
        label, number, values = entry
        measurement = Measurement(**values)
        expected = min(block, sizes[label] - number * block)
    except (ValueError, TypeError, KeyError):
        return False
    return number >= 0 and (bool(measurement.reason) or 0 < len(measurement.correct) == expected)


def _entry(label: str, block: int, measurement: Measurement) -> list[Any]:
    return [label, block, measurement._asdict()]


def _line(fingerprint: str, label: str, block: int, measurement: Measurement) -> str:
    return line_of(fingerprint, _entry(label, block, measurement))
