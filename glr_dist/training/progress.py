"""Progress of a run on the terminal: a bar, or one line per epoch where no terminal can draw a bar."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from tqdm import tqdm


class Progress:
    """Shows a training run on stderr (bar) or stdout (lines); a context manager.

    Args:
        epochs: epochs of the whole run.
        steps: steps per epoch.
        done: epochs that are done already.
    """

    def __init__(self, epochs: int, steps: int, done: int) -> None:
        self._epochs, self._steps = epochs, steps
        self._accuracy = ""
        self._bar: tqdm[Any] = tqdm(
            total=epochs * steps,
            initial=done * steps,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",  # within 80 columns
        )

    def step(self, epoch: int, loss: Tensor, copies_per_second: float) -> None:
        """Advances the bar by one step of the given epoch (from 1)."""
        if not self._bar.disable:
            self._show(epoch, loss.item(), copies_per_second)
            self._bar.update()

    def epoch(self, record: dict[str, Any], *, advance: int = 0) -> None:
        """Reports a finished epoch.

        Args:
            record: its metrics.
            advance: steps by which the bar still has to advance.
        """
        score = "accuracy" if "validation_accuracy" in record else "loss"
        value = record[f"validation_{score}"]
        self._accuracy = f", {'accuracy' if score == 'accuracy' else 'validation'} {value:.4f}"
        if not self._bar.disable:
            self._show(record["epoch"], record["train_loss"], record["copies_per_second"])
            self._bar.update(advance)
            return
        left = record["seconds"] / record["epoch"] * (self._epochs - record["epoch"])
        print(
            f"epoch {record['epoch']}/{self._epochs}  train loss {record['train_loss']:.4f}  "
            f"validation {score} {value:.4f}  "
            f"{record['copies_per_second']:,.0f} copies/s  {left:.0f} s left",
            flush=True,
        )

    def note(self, line: str) -> None:
        """Prints a line above the bar, or where the lines of the epochs are."""
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.write(line, sys.stderr)

    def warn(self, line: str) -> None:
        """Prints a warning above the bar."""
        self._bar.write(f"warning: {line}", sys.stderr)

    def _show(self, epoch: int, loss: float, copies_per_second: float) -> None:
        rate = tqdm.format_sizeof(copies_per_second)
        self._bar.set_postfix_str(
            f"epoch {epoch}/{self._epochs}, loss {loss:.4f}{self._accuracy}, {rate} copies/s", refresh=False
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
