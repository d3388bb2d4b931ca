"""Training on replicas: the trainer of the driver, which starts and watches the workers, and that of a worker."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from glr_dist.config import Config
from glr_dist.data import located
from glr_dist.errors import ConfigError
from glr_dist.estimators.allotment import Allotment
from glr_dist.estimators.compiled_step import Shape
from glr_dist.execution.all_reduce import begun_alike
from glr_dist.execution.replicas import check_workers, failures, run_replicas
from glr_dist.runs import ReadOnlyRunFolder, RunFolder
from glr_dist.training import checkpoint
from glr_dist.training.progress import Progress
from glr_dist.training.trainer import Trainer


class ReplicasTrainer(Trainer):
    """Trains on Ray Train workers: finds errors before Ray starts, and reports the run's progress.

    The first worker writes the run's folder as `inline` does; a group that is restarted continues from the newest
    checkpoint there. On several machines the folder and the data must be shared by all of them.

    Takes the arguments of `Trainer` and raises its errors; training also raises `ClusterError`.
    """

    def __init__(self, config: Config, out: Path, *, resume: bool = False) -> None:
        # The workers take the GPUs.
        super().__init__(config, out.absolute(), resume=resume, device=torch.device("cpu"))

    def _advance(self, epochs: int) -> None:
        self.net.train()
        self.net.compiles = False
        self.net.gradients(*self.train.batch(slice(0, 1)), self.loss)  # reports at once what cannot be estimated
        self._compile()
        config = self.config  # with the path that all workers take
        shared = config.model_copy(update={"data": located(config.data, config.code)})  # another working directory
        folder, warned = self.folder.path / ".replicas", 0

        def watch() -> None:
            nonlocal warned
            self._follow(progress)
            for reason in failures(folder)[warned:]:
                warned += 1
                progress.warn(f"{reason}; failure {warned} of the replicas")

        with self._progress() as progress:
            train = partial(_train, shared, self.folder.path, epochs)
            run_replicas(train, config.execution, self._blocks, folder, watch)
        self._restore()

    def _open(self, resume: bool) -> None:
        batch = min(self.config.training.batch_size, len(self.train))
        self._blocks = check_workers(self.config.execution, batch, self.config.estimator.example_block)
        super()._open(resume)

    def _follow(self, progress: Progress) -> None:
        """Reports the epochs that have ended since the previous call."""
        for record in self.folder.metrics():
            if record["epoch"] > self.epoch:  # a group that is restarted may repeat an epoch
                self.epoch = record["epoch"]
                progress.epoch(record, advance=self.steps)
                self.on_epoch(record)


class _WorkerTrainer(Trainer):
    """The trainer of a worker: all workers compute the same network, the first one writes the folder."""

    def __init__(self, config: Config, out: Path, device: torch.device) -> None:
        super().__init__(config, out, resume=True, device=device)
        if distributed.get_rank() != 0:
            self.evaluator = None  # the first worker evaluates the network that all have

    def _folder_of(self, out: Path) -> RunFolder:
        return RunFolder(out) if distributed.get_rank() == 0 else ReadOnlyRunFolder(out)

    def _open(self, resume: bool) -> None:
        if not self.folder.exists:
            where = socket.gethostname()
            raise ConfigError(f"--out: {self.folder.path} is not visible on {where}; all machines must share it")
        self._restore()  # the driver holds the claim

    def train_to(self, epochs: int) -> None:
        """Trains until `epochs` epochs are done, without claiming the folder, which the driver has claimed."""
        if self.epoch < epochs:
            self._advance(epochs)

    def compile(self) -> dict[Shape, str]:
        """Compiles the steps, as the configuration says, and returns the digests of the code."""
        self.net.train()
        self._compile()
        return self.net.compiled_code

    @property
    def _may_run_eagerly(self) -> bool:
        return False  # the driver has chosen the path for all

    def _report(self, progress: Progress, record: dict[str, object]) -> None:
        """Does nothing: the driver reports."""

    def _report_allotment(self, progress: Progress, allotment: Allotment) -> None:
        """Does nothing: the metrics of the epoch hold it."""


def _train(config: Config, out: Path, epochs: int, device: torch.device) -> None:
    """Trains in one worker, after all of them have restored the same state."""
    trainer = begun_alike(
        lambda: _WorkerTrainer(config, out, device),
        lambda trainer: (trainer.epoch, checkpoint.digest(trainer.net.state_dict())),
    )
    begun_alike(trainer.compile, lambda code: code)
    trainer.train_to(epochs)
