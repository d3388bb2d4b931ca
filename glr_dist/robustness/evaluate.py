"""Evaluates the robustness of trained networks: every condition of a suite, block by block, here or on Ray actors.

Finished blocks are kept in the run's folder until its report is written: the same command continues after a Ctrl-C.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from torch import Tensor
from tqdm import tqdm

from glr_dist import __version__
from glr_dist.errors import ConfigError, SiteError
from glr_dist.execution.inline import Inline
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.files import write_atomically
from glr_dist.glr import GLR
from glr_dist.robustness import plots
from glr_dist.robustness.conditions import Condition, conditions_of
from glr_dist.robustness.evaluator import Evaluator, Subject
from glr_dist.robustness.outcome import Outcome
from glr_dist.robustness.report import FILE, Report, markdown, report_of
from glr_dist.robustness.suite import Suite, surrogate_settings
from glr_dist.robustness.surrogate import trained_surrogate
from glr_dist.robustness.targets import shifted
from glr_dist.training import checkpoint
from glr_dist.training.trained import Trained, load_trained

Piece = tuple[int, Condition, int]  # run, condition, block

_KEPT = ".robustness.jsonl"  # the outcomes of an evaluation that has not ended


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
    runs = [_Evaluation(folder, suite, device) for folder in folders]
    evaluator = Evaluator([run.subject for run in runs], suite)
    with _Progress(runs) as progress:
        for (place, condition, block), outcome in _outcomes(evaluator, _pieces(runs), actors):
            runs[place].take(condition, block, outcome)
            progress.tell(runs[place], condition)
    return [run.finish() for run in runs]


class _Evaluation:
    """One run on its way to a report.

    Attributes:
        subject: its network, and those that it is compared with.
    """

    def __init__(self, folder: Path, suite: Suite, device: str | None) -> None:
        self.folder, self.suite = folder.absolute(), suite
        self.trained = load_trained(self.folder, device)
        settings, dataset, net = self.trained.settings, self.trained.dataset, self.trained.net
        if suite.inference.votes and net.noise is None:
            raise ConfigError(f"inference.votes: {suite.inference.votes} is not allowed: {folder} has no noise; use 0")
        split = dataset.test if suite.split == "test" else dataset.validation
        self.conditions = conditions_of(suite, len(split))
        corrupted = any(condition.severity is not None for condition in self.conditions)
        transferred = any(condition.threat == "transfer" for condition in self.conditions)
        surrogate = baseline = None
        if transferred or (corrupted and suite.baseline == "surrogate"):
            surrogate = trained_surrogate(surrogate_settings(suite.surrogate, settings), dataset, device).net
        if corrupted:
            baseline = surrogate if suite.baseline == "surrogate" else _baseline(suite.baseline, self.trained, device)
        images = split.rows(slice(0, self.conditions[0].examples)).to(next(net.parameters()).device)
        net.prepare(images.batch(slice(0, 2))[0])  # here: it must not happen beside other threads
        adaptive = any(condition.threat == "adaptive" for condition in self.conditions)
        largest = images.batch(slice(0, suite.block))[0]
        self.subject = Subject(net, images, _shifted(net, largest, suite) if adaptive else None, surrogate, baseline)
        self.found: dict[str, dict[int, Outcome]] = {condition.label: {} for condition in self.conditions}
        self._file = self._taken_up()

    # ------------------------------------------------------------ blocks

    @property
    def missing(self) -> int:
        """How many blocks wait."""
        return sum(self.waits(condition, block) for condition in self.conditions for block in self.blocks(condition))

    def blocks(self, condition: Condition) -> range:
        """The blocks of a condition."""
        return range(-(-condition.examples // self.suite.block))

    def waits(self, condition: Condition, block: int) -> bool:
        """Whether a block is to be computed; not once an attack has met a block that it cannot test."""
        found = self.found[condition.label]
        return block not in found and not any(outcome.reason for outcome in found.values())

    def take(self, condition: Condition, block: int, outcome: Outcome) -> None:
        """Keeps the outcome of a block, on the disk too."""
        self.found[condition.label][block] = outcome
        self._file.write(_line(condition.label, block, outcome))
        self._file.flush()

    # ------------------------------------------------------------ the folder

    def _taken_up(self) -> TextIO:
        """The file of finished blocks, with those of an evaluation that was stopped, if it was the same one."""
        path, head = self.folder / _KEPT, self._fingerprint() + "\n"
        known = {condition.label for condition in self.conditions}
        kept = path.read_text().splitlines(keepends=True) if path.exists() else []
        if kept[:1] == [head]:
            for line in kept[1:]:
                if not line.endswith("\n"):
                    break  # it was stopped while it wrote
                label, block, outcome = json.loads(line)
                assert label in known
                self.found[label][block] = Outcome(**outcome)
        lines = [_line(label, block, outcome) for label in known for block, outcome in self.found[label].items()]
        write_atomically(path, "".join([head, *lines]).encode())
        return path.open("a")

    def _fingerprint(self) -> str:
        """A digest of everything that the outcomes depend on."""
        sha = hashlib.sha256(json.dumps([__version__, self.suite.model_dump(mode="json")]).encode())
        for network in (self.subject.net, self.subject.surrogate, self.subject.baseline):
            sha.update((checkpoint.digest(network.state_dict()) if network else "none").encode())
        for tensor in (self.subject.images.images, self.subject.images.labels):
            sha.update(tensor.cpu().numpy().tobytes())
        return sha.hexdigest()

    def finish(self) -> Report:
        """Writes the report, and lets go of the single blocks."""
        outcomes = {label: [found[block] for block in sorted(found)] for label, found in self.found.items()}
        report = report_of(
            self.folder.name,
            self.trained.settings.model_dump(mode="json"),
            self.trained.epoch,
            checkpoint.digest(self.trained.net.state_dict()),
            self.suite,
            self.conditions,
            outcomes,
        )
        write_atomically(self.folder / FILE, (report.model_dump_json(indent=2) + "\n").encode())
        text = markdown(report)
        for name in plots.draw(report, self.conditions, outcomes, self.subject.images, self.folder):
            text += f"\n![]({name})\n"
        write_atomically(self.folder / "robustness.md", text.encode())
        self._file.close()
        (self.folder / _KEPT).unlink()
        return report


def _line(label: str, block: int, outcome: Outcome) -> str:
    return json.dumps([label, block, outcome._asdict()]) + "\n"


def _shifted(net: GLR, examples: Tensor, suite: Suite) -> GLR | str | None:
    """What the adaptive threat model estimates by: nothing where there is no noise, and autograd serves."""
    if net.noise is None:
        return None
    try:
        return shifted(net, examples, **suite.expectation.model_dump(exclude={"draws"}))
    except SiteError as error:
        return str(error)


def _baseline(folder: str, run: Trained, device: str | None) -> GLR:
    """The network that corruption errors are relative to."""
    other = load_trained(Path(folder).absolute(), device)
    if other.settings.data.name != run.settings.data.name:
        data = other.settings.data.name
        raise ConfigError(f"baseline: {folder} is not allowed: it was trained on {data}, not {run.settings.data.name}")
    return other.net


def _pieces(runs: Sequence[_Evaluation]) -> Iterator[Piece]:
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

    def calls() -> Iterator[Call]:
        for piece in pieces:
            sent.append(piece)
            yield Call("outcome", piece)

    pool = Pool(Evaluator, (evaluator.subjects, evaluator.suite), actors)
    try:
        for number, (outcome) in pool.run(calls()):
            yield sent[number], outcome
    finally:
        pool.close()


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

    def __init__(self, runs: Sequence[_Evaluation]) -> None:
        self._runs = runs
        self._told: set[tuple[_Evaluation, Condition]] = set()
        self._bar = tqdm(
            total=sum(run.missing for run in runs), disable=not sys.stderr.isatty(), unit="block", dynamic_ncols=True
        )

    def tell(self, run: _Evaluation, condition: Condition) -> None:
        """That a block of a condition is done."""
        if not self._bar.disable:
            self._bar.set_postfix_str(condition.label, refresh=False)
            # What a refused attack leaves out is never done.
            self._bar.total = self._bar.n + 1 + sum(each.missing for each in self._runs)
            self._bar.update()
        elif (run, condition) not in self._told and not any(
            run.waits(condition, block) for block in run.blocks(condition)
        ):
            self._told.add((run, condition))  # blocks of a refused attack that were on their way come later
            found = run.found[condition.label].values()
            refused = next((outcome.reason for outcome in found if outcome.reason), None)
            share = sum(outcome.correct.count("1") for outcome in found) / condition.examples
            print(f"{condition.label:<32}{refused or f'accuracy {share:.4f}'}", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
