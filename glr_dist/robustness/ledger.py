"""The ledger of an evaluation: finished blocks, in memory and on disk, so that a stopped evaluation can continue."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from glr_dist.files import write_atomically
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.measurement import Measurement


class Ledger:
    """The measurements of one subject, block by block.

    Args:
        conditions: all conditions of the evaluation.
        block: number of images per block.
        fingerprint: digest of everything that determines the measurements.
        file: where measurements are appended, open for writing.

    Attributes:
        measurements: label of a condition -> block -> measurement.
    """

    def __init__(self, conditions: Sequence[Condition], block: int, fingerprint: str, file: TextIO) -> None:
        self.conditions = conditions
        self.measurements: dict[str, dict[int, Measurement]] = {condition.label: {} for condition in conditions}
        self._block, self._fingerprint, self._file = block, fingerprint, file
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
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        whole = list(_readable(lines[1:], fingerprint, conditions, block)) if lines[:1] == [fingerprint] else []
        if len(lines) > 1 and lines[0] != fingerprint:
            print(f"warning: {path}: belongs to other settings or another network; starting anew", file=sys.stderr)
        content = [fingerprint + "\n", *(_line(fingerprint, *entry) for entry in whole)]
        write_atomically(path, "".join(content).encode())
        ledger = cls(conditions, block, fingerprint, path.open("a"))
        for label, number, measurement in whole:
            ledger._keep(label, number, measurement)
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
        self._file.write(_line(self._fingerprint, condition.label, block, measurement))
        self._file.flush()

    def in_order(self) -> dict[str, list[Measurement]]:
        """Returns the measurements of each condition in the order of the blocks."""
        return {label: [blocks[number] for number in sorted(blocks)] for label, blocks in self.measurements.items()}

    def remove(self) -> None:
        """Closes and deletes the file."""
        self._file.close()
        Path(self._file.name).unlink()

    def _keep(self, label: str, block: int, measurement: Measurement) -> None:
        self.measurements[label][block] = measurement
        if measurement.reason:
            self._refused.add(label)


def _readable(
    lines: Sequence[str], fingerprint: str, conditions: Sequence[Condition], block: int
) -> Iterator[tuple[str, int, Measurement]]:
    """Yields the undamaged entries of a ledger's file."""
    sizes = {condition.label: condition.examples for condition in conditions}
    for line in lines:
        try:
            entry, _, digest = line.rpartition(" ")
            if digest != _digest(fingerprint, entry):
                continue  # altered, or cut off when the evaluation was stopped
            label, number, values = json.loads(entry)
            measurement = Measurement(**values)
            expected = min(block, sizes[label] - number * block)
        except (ValueError, TypeError, KeyError):
            continue
        if number < 0 or (not measurement.reason and not 0 < len(measurement.correct) == expected):
            continue
        yield label, number, measurement


def _line(fingerprint: str, label: str, block: int, measurement: Measurement) -> str:
    entry = json.dumps([label, block, measurement._asdict()])
    return f"{entry} {_digest(fingerprint, entry)}\n"


def _digest(fingerprint: str, entry: str) -> str:
    return hashlib.sha256(f"{fingerprint} {entry}".encode(errors="surrogateescape")).hexdigest()[:32]
