"""Run folders: the names of a run's files, and the settings that decide its result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from glr_dist import config as configuration
from glr_dist.config import Config
from glr_dist.errors import ConfigError
from glr_dist.files import write_atomically
from glr_dist.imported import is_import_path, sources_of

_CHECKPOINT = re.compile(r"epoch-(\d{5,})\.pt")
CheckpointName = Literal["newest", "best"]  # a checkpoint of a run, as a user names it

# Settings that change where and how a run is computed, but not one bit of its result. Of the section `execution` only
# `compile` does, see `deciding`.
_NO_EFFECT = (
    *("execution", "tracking", "robustness", "diagnose", "data.root", "data.download"),
    *("training.verify", "training.keep_checkpoints"),
)


def deciding(config: Config) -> dict[str, Any]:
    """Returns the settings that decide a run's result, by dotted name.

    The digest of the weights that a run begins with stands in the place of their path. Values given per site or per
    epoch are one value. Two configurations with equal deciding settings give the same parameters bit for bit.
    """
    values = config.model_dump(mode="json")
    del values["code"]
    named = configuration.flat({"training": values.pop("training"), "seed": values.pop("seed")})
    if values["model"]["weights_sha256"] is not None:
        del values["model"]["weights"]
    named |= {f"{section}.{key}": value for section in values for key, value in values[section].items()}
    found = {name: value for name, value in named.items() if not name.startswith(_NO_EFFECT)}
    if config.execution.compile != "none":
        found["execution.compile"] = config.execution.compile
    return found


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist yet.

    Attributes:
        path: the absolute folder.
        config_file: the resolved configuration, `config.yaml`.
        metrics_file: one JSON object per finished epoch, `metrics.jsonl`.
        summary_file: figures of the finished run, `summary.json`.
        curve_file: the learning curve, `learning_curve.png`; a PDF is beside it.
        robustness_curve_file: robustness along the training, `robustness_curve.png`; a PDF is beside it.
        data_file: digests of the examples of each part, `data.json`.
        checkpoints: the folder of the checkpoints.
        code: copies of the user's own code, to read; they are never imported.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.curve_file = self.path / "learning_curve.png"
        self.robustness_curve_file = self.path / "robustness_curve.png"
        self.data_file = self.path / "data.json"
        self.checkpoints = self.path / "checkpoints"
        self.code = self.path / "code"

    @property
    def exists(self) -> bool:
        """True if the folder holds a run."""
        return self.config_file.is_file()

    # ------------------------------------------------------------ reading

    def config(self) -> Config:
        """Reads the run's configuration.

        Raises:
            ConfigError: the folder does not hold a run, or its configuration cannot be read.
        """
        if not self.exists:
            raise ConfigError(f"{self.path}: is not a run of glr-dist train (config.yaml is missing)")
        return configuration.load_config(self.config_file)

    def metrics(self) -> list[dict[str, Any]]:
        """Reads the metrics of the finished epochs, oldest first. A last line that is half written is left out."""
        try:
            lines = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def summary(self) -> dict[str, Any]:
        """Reads the summary of a finished run.

        Raises:
            OSError: the run has not finished.
        """
        found: dict[str, Any] = json.loads(self.summary_file.read_text(encoding="utf-8"))
        return found

    def last_epoch(self) -> int:
        """Returns the epoch of the newest checkpoint, after which the run continues; 0 if it has none."""
        return max(checkpoints_in(self.checkpoints), default=0)

    # ------------------------------------------------------------ writing

    def begin(self, config: Config) -> None:
        """Makes the folder of a new run and writes its configuration.

        Raises:
            ConfigError: the folder is not empty or cannot be written.
        """
        try:
            advice = "continue it with --resume" if self.exists else "it does not hold a run"
            check_empty(self.path, f"{advice}, or choose another --out")
            write_atomically(self.config_file, configuration.dump_config(config).encode())
        except OSError as error:
            raise ConfigError(f"--out: {self.path} cannot be written ({error.strerror})") from None

    def keep_code(self, config: Config) -> None:
        """Copies the files of the user's own code that the configuration names, and what they import beside them."""
        for name, source in _sources(config).items():
            write_atomically(self.code / f"{name}.py", source.read_bytes())

    def changed_code(self, config: Config) -> list[str]:
        """Returns the modules of the user's own code that are not those that the run began with."""
        kept = {path.stem: path.read_bytes() for path in self.code.glob("*.py")}
        return [
            name
            for name, source in _sources(config).items()
            if kept.get(name, source.read_bytes()) != source.read_bytes()
        ]

    def keep_data(self, digests: Mapping[str, str]) -> None:
        """Writes the digests of the examples of each part."""
        write_atomically(self.data_file, (json.dumps(dict(digests), indent=2) + "\n").encode())

    def check_data(self, digests: Mapping[str, str]) -> None:
        """Checks that the examples are those that the run began with, if it has recorded their digests.

        Raises:
            ConfigError: the examples of a part differ.
        """
        try:
            before = json.loads(self.data_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        for part, digest in digests.items():
            if before.get(part, digest) != digest:
                raise ConfigError(
                    f"data: the {part} examples are not those that the run in {self.path} began with; leave out "
                    "--resume to begin another run"
                )

    def check_resumable(self, config: Config, *, other_epochs: bool = False) -> None:
        """Checks that a configuration continues the run in this folder.

        Args:
            config: the configuration.
            other_epochs: allow another number of epochs.

        Raises:
            ConfigError: a setting that decides the result differs.
        """
        before, now = deciding(self.config()), deciding(config)
        for key in sorted(before.keys() | now.keys()):
            if not (other_epochs and key == "training.epochs") and before.get(key) != now.get(key):
                raise ConfigError(
                    f"{key}: the run in {self.path} has {before.get(key)!r}, not {now.get(key)!r}; "
                    "leave out --resume to begin another run"
                )

    def change_epochs(self, epochs: int) -> None:
        """Deletes the summary, which becomes outdated, and then changes the number of epochs in the configuration.

        A crash in between leaves the finished run without its summary, which resuming writes again.
        """
        config = self.config()
        training = config.training.model_copy(update={"epochs": epochs})
        self.summary_file.unlink(missing_ok=True)
        changed = config.model_copy(update={"training": training})
        write_atomically(self.config_file, configuration.dump_config(changed).encode())

    def keep_compile(self, compile: str) -> None:
        """Writes into the configuration whether the run's steps are compiled."""
        config = self.config()
        execution = config.execution.model_copy(update={"compile": compile})
        changed = config.model_copy(update={"execution": execution})
        write_atomically(self.config_file, configuration.dump_config(changed).encode())

    def replace_metrics(self, records: Sequence[dict[str, Any]]) -> None:
        """Replaces the metrics by those of the given epochs."""
        write_atomically(self.metrics_file, "".join(json.dumps(record) + "\n" for record in records).encode())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Appends the metrics of one epoch and flushes them to the disk."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_checkpoint(self, name: str, save: Callable[[Path], None]) -> None:
        """Calls `save` with the path of the checkpoint of that file name."""
        save(self.checkpoints / name)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes the summary."""
        write_atomically(self.summary_file, (json.dumps(summary, indent=2) + "\n").encode())


class ReadOnlyRunFolder(RunFolder):
    """A run folder that another process writes: every write does nothing."""

    def begin(self, config: Config) -> None:
        """Does nothing."""

    def change_epochs(self, epochs: int) -> None:
        """Does nothing."""

    def keep_compile(self, compile: str) -> None:
        """Does nothing."""

    def keep_code(self, config: Config) -> None:
        """Does nothing."""

    def keep_data(self, digests: Mapping[str, str]) -> None:
        """Does nothing."""

    def replace_metrics(self, records: Sequence[dict[str, Any]]) -> None:
        """Does nothing."""

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Does nothing."""

    def write_checkpoint(self, name: str, save: Callable[[Path], None]) -> None:
        """Does nothing."""

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Does nothing."""


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Returns the checkpoints in a folder by epoch."""
    return {int(match[1]): path for path in folder.glob("*.pt") if (match := _CHECKPOINT.fullmatch(path.name))}


def check_empty(folder: Path, advice: str) -> None:
    """Refuses a folder that holds anything but hidden files.

    Raises:
        ConfigError: the folder is not empty; the message ends with `advice`.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is not a folder")
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"--out: {folder} is not empty; {advice}")


def _sources(config: Config) -> dict[str, Path]:
    names = (config.model.name, config.data.name, config.training.loss)
    return sources_of(name for name in names if is_import_path(name))
