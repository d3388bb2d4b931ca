"""A run on replicas: the trainer of this process, which starts and watches, and those of the workers."""

from __future__ import annotations

import json
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from tqdm import tqdm

from glr_dist.config import Config
from glr_dist.data import root_of
from glr_dist.errors import ConfigError
from glr_dist.execution.all_reduce import begun_alike
from glr_dist.execution.replicas import check_workers, failures, run_replicas
from glr_dist.training import checkpoint
from glr_dist.training.trainer import Trainer


class Replicas(Trainer):
    """The driver of a run on Ray Train workers: it finds mistakes before Ray starts, and tells of the run.

    The first worker fills the run's folder as `inline` does; a group that is started again continues from the newest
    checkpoint there. On several machines the folder, and that of the data, must be shared by all of them.

    Arguments and errors as of `Trainer`; `run` also raises `ClusterError`.
    """

    def __init__(self, settings: Config, out: Path, *, resume: bool = False) -> None:
        # The workers take the GPUs.
        super().__init__(settings, out.absolute(), resume=resume, device=torch.device("cpu"))

    def run(self) -> dict[str, Any]:
        settings = self.settings
        if self.epoch == settings.training.epochs:
            return self._finish()
        self.net.train()
        self.net.gradients(*self.train.batch(slice(0, 1)), self.loss)  # what cannot be estimated is said at once
        root = str(root_of(settings.data).absolute())  # workers have another working directory
        there = settings.model_copy(update={"data": settings.data.model_copy(update={"root": root})})
        folder, told = self.out / ".replicas", 0

        def watch() -> None:
            nonlocal told
            self._follow(bar)
            for reason in failures(folder)[told:]:
                told += 1
                bar.write(f"warning: {reason}; failure {told} of the replicas", sys.stderr)

        with self._progress() as bar:
            run_replicas(partial(_train, there, self.out), settings.execution, self._blocks, folder, watch)
        summary: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return summary

    def _open(self, resume: bool) -> None:
        batch = min(self.settings.training.batch_size, len(self.train))
        self._blocks = check_workers(self.settings.execution, batch, self.settings.estimator.example_block)
        super()._open(resume)

    def _follow(self, bar: tqdm[Any]) -> None:
        """Tells of the epochs that have ended since it last did."""
        try:
            lines = (self.out / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            # A group that starts again may repeat an epoch; the last line may be half written.
            if not line.endswith("\n") or (record := json.loads(line))["epoch"] <= self.epoch:
                continue
            self.history.append(record)
            bar.set_postfix_str(self._state(torch.tensor(record["train_loss"]), record["copies_per_second"]))
            bar.update(self.steps)
            self.epoch, self.seconds = record["epoch"], record["seconds"]
            self._tell(bar, record)


class _Member(Trainer):
    """The trainer in a worker: all compute the same, the first one keeps it."""

    def __init__(self, settings: Config, out: Path, device: torch.device) -> None:
        self._first = distributed.get_rank() == 0
        super().__init__(settings, out, resume=True, device=device)

    def _open(self, resume: bool) -> None:
        if not (self.out / "config.yaml").exists():
            raise ConfigError(f"--out: {self.out} is not seen on {socket.gethostname()}; machines must share it")
        super()._open(resume)

    def _keep_metrics(self) -> None:
        if self._first:
            super()._keep_metrics()

    def _keep(self, record: dict[str, Any]) -> None:
        if self._first:
            super()._keep(record)
        else:
            self.history.append(record)

    def _finish(self) -> dict[str, Any]:
        return super()._finish() if self._first else {}

    def _tell(self, bar: tqdm[Any], record: dict[str, Any]) -> None:
        """The driver does."""


def _train(settings: Config, out: Path, device: torch.device) -> None:
    """What every worker runs."""
    begun_alike(
        lambda: _Member(settings, out, device),
        lambda member: (member.epoch, checkpoint.digest(member.net.state_dict())),
    ).run()
