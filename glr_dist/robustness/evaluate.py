"""Evaluates the robustness of trained networks: every condition of a suite, block by block, here or on Ray actors."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glr_dist.errors import ConfigError
from glr_dist.execution.inline import Inline
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.evaluation import Evaluation
from glr_dist.robustness.evaluator import Evaluator
from glr_dist.robustness.outcome import Outcome
from glr_dist.robustness.report import Report
from glr_dist.robustness.suite import Suite

Piece = tuple[int, Condition, int]  # run, condition, block

_HANG = 600.0  # seconds that a block may take until its actor is restarted


def evaluate(
    folders: Sequence[Path], suite: Suite, *, device: str | None = None, actors: int | None = None
) -> list[Report]:
    """Measures runs under every condition of a suite, and writes `robustness.json`, `robustness.md` and plots to each.

    Args:
        folders: of the runs.
        suite: what is measured.
        device: "auto", "cpu" or "cuda[:N]" instead of the runs' own.
        actors: how many Ray actors, on CPUs; 0 for this process alone. By default as many as fit on the cluster that
            RAY_ADDRESS names, or else this process alone.

    Raises:
        UserError: a folder is no run, a checkpoint is damaged, the suite does not fit, or the cluster has no room.
        OSError: a folder cannot be written.
    """
    keep_freed_memory()
    if actors is None and "RAY_ADDRESS" not in os.environ:
        actors = 0
    if actors != 0:
        if device not in (None, "auto", "cpu"):
            raise ConfigError(f"--device: {device!r} is not allowed: Ray actors evaluate on CPUs; add --actors 0")
        device = "cpu"
    runs = [Evaluation(folder, suite, device) for folder in folders]
    evaluator = Evaluator([run.subject for run in runs], suite)
    reports: dict[int, Report] = {}
    with _Progress(runs) as progress:
        for (place, condition, block), outcome in _outcomes(evaluator, _pieces(runs), actors):
            run = runs[place]
            if place in reports:  # a block of a refused attack, which was on its way
                continue
            run.take(condition, block, outcome)
            progress.tell(run, condition)
            if not run.missing:
                reports[place] = run.finish()
    return [reports[place] if place in reports else run.finish() for place, run in enumerate(runs)]


def _pieces(runs: Sequence[Evaluation]) -> Iterator[Piece]:
    """The blocks that wait, looked at when they are asked for."""
    for place, run in enumerate(runs):
        for condition in run.conditions:
            for block in run.blocks(condition):
                if run.waits(condition, block):
                    yield place, condition, block


def _outcomes(evaluator: Evaluator, pieces: Iterator[Piece], actors: int | None) -> Iterator[tuple[Piece, Outcome]]:
    """The outcome of each piece, as they come."""
    if actors == 0:
        yield from _inline(evaluator, pieces)
        return
    from glr_dist.execution.pool import Call, Pool  # Ray takes a second to import

    sent: list[Piece] = []
    pool = Pool(_Remote, actors=actors, hang_timeout=_HANG)
    try:
        shared = pool.share("evaluator", evaluator)  # arguments of a constructor may be lost to an actor that restarts

        def calls() -> Iterator[Call]:
            for piece in pieces:
                sent.append(piece)
                yield Call("outcome", (shared, *piece))

        for number, outcome in pool.run(calls()):
            yield sent[number], outcome
    finally:
        pool.close()


class _Remote:
    """What an actor of the pool is: it is given the evaluator with its first call."""

    def outcome(self, evaluator: Evaluator, *piece: Any) -> Outcome:
        return evaluator.outcome(*piece)


def _inline(evaluator: Evaluator, pieces: Iterator[Piece]) -> Iterator[tuple[Piece, Outcome]]:
    """On threads of this process, each with networks of its own."""
    own = threading.local()
    executor = Inline(1 if evaluator.subjects[0].images.images.is_cuda else None)

    def outcome(piece: Piece) -> tuple[Piece, Outcome]:
        if not hasattr(own, "evaluator"):
            own.evaluator = evaluator if executor.threads == 1 else evaluator.copied()
        return piece, own.evaluator.outcome(*piece)

    yield from executor.map(outcome, pieces)


class _Progress:
    """A bar over the blocks, or a line for each condition that is done where there is no terminal to draw one on."""

    def __init__(self, runs: Sequence[Evaluation]) -> None:
        self._runs = runs
        self._told: set[tuple[Evaluation, Condition]] = set()
        self._bar = tqdm(
            total=sum(run.missing for run in runs), disable=not sys.stderr.isatty(), unit="block", dynamic_ncols=True
        )

    def tell(self, run: Evaluation, condition: Condition) -> None:
        """That a block of a condition is done."""
        if not self._bar.disable:
            self._bar.set_postfix_str(condition.label, refresh=False)
            # What a refused attack leaves out is never done.
            self._bar.total = self._bar.n + 1 + sum(each.missing for each in self._runs)
            self._bar.update()
            return
        waiting = any(run.waits(condition, block) for block in run.blocks(condition))
        if not waiting and (run, condition) not in self._told:
            self._told.add((run, condition))  # blocks of a refused attack that were on their way come later
            found = list(run.found[condition.label].values())
            refused = next((outcome.reason for outcome in found if outcome.reason), None)
            share = sum(outcome.correct.count("1") for outcome in found) / condition.examples
            print(f"{condition.label:<32}{refused or f'accuracy {share:.4f}'}", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
