"""One run on its way to a robustness report: what it needs, what is found, and its folder.

Finished blocks are kept in the folder until the report is written, so that an evaluation that was stopped continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from torch import Tensor

from glr_dist import __version__
from glr_dist.errors import ConfigError, SiteError
from glr_dist.files import write_atomically
from glr_dist.glr import GLR
from glr_dist.robustness import plots
from glr_dist.robustness.conditions import Condition, conditions_of
from glr_dist.robustness.evaluator import Subject
from glr_dist.robustness.outcome import Outcome
from glr_dist.robustness.page import markdown
from glr_dist.robustness.report import FILE, Report, report_of
from glr_dist.robustness.suite import Suite, surrogate_settings
from glr_dist.robustness.surrogate import trained_surrogate
from glr_dist.robustness.targets import shifted, spreads
from glr_dist.training import checkpoint
from glr_dist.training.trained_run import TrainedRun, load_run

_KEPT = ".robustness.jsonl"  # the outcomes of an evaluation that has not ended


class Evaluation:
    """One run on its way to a report.

    Args:
        folder: of the run.
        suite: what is measured.
        device: "auto", "cpu" or "cuda[:N]" instead of the run's own.

    Attributes:
        conditions: of the suite.
        subject: the run's network, and those that it is compared with.
        found: label of a condition -> block -> its outcome.

    Raises:
        UserError: the folder is no run, its checkpoint is damaged, or the suite does not fit it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, suite: Suite, device: str | None) -> None:
        self.folder, self.suite = folder.absolute(), suite
        self.trained = load_run(self.folder, device)
        settings, dataset, net = self.trained.config, self.trained.data, self.trained.net
        if suite.inference.votes and net.noise is None:
            raise ConfigError(f"inference.votes: {suite.inference.votes} is not allowed: {folder} has no noise; use 0")
        where = next(net.parameters()).device
        device = str(where)  # the other networks go where this one is
        split = dataset.test if suite.split == "test" else dataset.validation
        self.conditions = conditions_of(suite, len(split))
        corrupted = any(condition.severity is not None for condition in self.conditions)
        transferred = any(condition.threat == "transfer" for condition in self.conditions)
        surrogate = baseline = None
        if transferred or (corrupted and suite.baseline == "surrogate"):
            surrogate = trained_surrogate(surrogate_settings(suite.surrogate, settings), dataset, device).net
        if corrupted:
            baseline = surrogate if suite.baseline == "surrogate" else _baseline(suite.baseline, self.trained, device)
        images = split.rows(slice(0, self.conditions[0].examples)).to(where)
        net.prepare(images.batch(slice(0, 2))[0])  # here: it must not happen beside other threads
        smoothed: tuple[GLR, ...] = ()
        refused = ""
        if net.noise is not None and any(condition.threat == "adaptive" for condition in self.conditions):
            try:
                smoothed = tuple(_smoothed(net, images.batch(slice(0, suite.block))[0], suite))
            except SiteError as error:
                refused = str(error)
        self.subject = Subject(net, images, smoothed, refused, surrogate, baseline)
        self.found: dict[str, dict[int, Outcome]] = {condition.label: {} for condition in self.conditions}
        self._refused: set[str] = set()
        self._file = self._taken_up()

    # ------------------------------------------------------------ blocks

    @property
    def missing(self) -> int:
        """How many blocks wait."""
        waiting = (c for c in self.conditions if c.label not in self._refused)
        return sum(len(self.blocks(condition)) - len(self.found[condition.label]) for condition in waiting)

    def blocks(self, condition: Condition) -> range:
        """The blocks of a condition."""
        return range(-(-condition.examples // self.suite.block))

    def waits(self, condition: Condition, block: int) -> bool:
        """Whether a block is to be computed; not once an attack has met one that it cannot test."""
        return block not in self.found[condition.label] and condition.label not in self._refused

    def take(self, condition: Condition, block: int, outcome: Outcome) -> None:
        """Keeps the outcome of a block, on the disk too."""
        self._add(condition.label, block, outcome)
        self._file.write(_line(condition.label, block, outcome))
        self._file.flush()

    def _add(self, label: str, block: int, outcome: Outcome) -> None:
        self.found[label][block] = outcome
        if outcome.reason:
            self._refused.add(label)

    # ------------------------------------------------------------ the folder

    def _taken_up(self) -> TextIO:
        """The file of finished blocks, with those of an evaluation that was stopped, if it was the same one."""
        path, head = self.folder / _KEPT, self._fingerprint() + "\n"
        kept = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
        if kept[:1] == [head]:
            sizes = {condition.label: condition.examples for condition in self.conditions}
            for line in kept[1:]:
                try:
                    label, block, values = json.loads(line)
                    outcome = Outcome(**values)
                    expected = min(self.suite.block, sizes[label] - block * self.suite.block)
                except (ValueError, TypeError, KeyError):
                    break  # it was stopped while it wrote
                if block < 0 or (not outcome.reason and not 0 < len(outcome.correct) == expected):
                    break
                self._add(label, block, outcome)
        lines = [_line(label, block, outcome) for label in self.found for block, outcome in self.found[label].items()]
        write_atomically(path, "".join([head, *lines]).encode())
        return path.open("a")

    def _fingerprint(self) -> str:
        """A digest of everything that the outcomes depend on."""
        settings = self.trained.config.model_dump(mode="json", exclude={"execution", "tracking", "diagnose"})
        sha = hashlib.sha256(json.dumps([__version__, settings, self.suite.model_dump(mode="json")]).encode())
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
            self.trained.config.model_dump(mode="json"),
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


def _smoothed(net: GLR, examples: Tensor, suite: Suite) -> Iterator[GLR]:
    """What the adaptive threat model estimates by, for each width of its noise."""
    chosen, votes = suite.adaptive, suite.inference.votes
    own = net.scales() if votes else {}  # the noise that predictions have is there anyway
    known = spreads(net, examples)
    for spread in chosen.spreads:
        scales = {site: (own.get(site, 0) ** 2 + (spread * std) ** 2) ** 0.5 for site, std in known.items()}
        yield shifted(net, examples, scales, copies=chosen.copies, passes=chosen.passes)


def _baseline(folder: str, run: TrainedRun, device: str | None) -> GLR:
    """The network that corruption errors are relative to."""
    other = load_run(Path(folder).absolute(), device)
    for key, value in run.config.data:
        if key not in ("root", "download") and (others := getattr(other.config.data, key)) != value:
            raise ConfigError(f"baseline: {folder} is not allowed: its data.{key} is {others!r}, not {value!r}")
    return other.net
