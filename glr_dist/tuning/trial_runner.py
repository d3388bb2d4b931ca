"""Runs one trial of a search: an ordinary run in its own folder, resumed from its last checkpoint."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glr_dist.config import Config, Execution, Tracking
from glr_dist.data import root_of
from glr_dist.errors import ClusterError, ConfigError, UserError
from glr_dist.robustness.evaluate import evaluate
from glr_dist.runs import Claim, ClaimedError, claim
from glr_dist.text import one_line
from glr_dist.tracking import Paused, tracked
from glr_dist.training.trainer import Trainer
from glr_dist.tuning.objectives import EVERY_EPOCH, epoch_metrics
from glr_dist.tuning.search_config import Search
from glr_dist.tuning.trial_record import TrialRecord, read_record, trial_folder

_PATIENCE = 60.0  # seconds to wait for another process that still writes to a trial

Report = Callable[[dict[str, Any]], None]  # takes the metrics of an epoch; ends the trial by raising SystemExit


class Interval(NamedTuple):
    """A stretch of training of one trial, after which the trial is measured.

    Attributes:
        number: the trial's number.
        until: the epoch at which the interval ends; None: the last epoch of the configuration.
    """

    number: int
    until: int | None = None


@dataclass(frozen=True)
class TrialRunner:
    """Runs the trials of a search.

    Attributes:
        search: the search.
        out: the search's folder.
        tracking: the resolved tracking section for the trials.
        parent_run: id of the run on the tracking server under which the trials are nested.
    """

    search: Search
    out: Path
    tracking: Tracking
    parent_run: str | None = None

    def config(self, record: TrialRecord) -> Config:
        """Returns the configuration with which a trial trains: that of its point, with the resources of a trial."""
        config = self.search.config_at(record.point)
        tags = dict(self.tracking.tags)
        if self.parent_run is not None:
            tags["mlflow.parentRunId"] = self.parent_run
        if record.parent is not None:
            tags["parent_trial"] = str(record.parent)
        # Workers have another working directory, so the path of the data is made absolute.
        data = config.data.model_copy(update={"root": str(root_of(config.data).absolute())})
        tracking = self.tracking.model_copy(update={"tags": tags})
        return config.model_copy(update={"execution": self._execution(), "tracking": tracking, "data": data})

    def _execution(self) -> Execution:
        tune = self.search.tune
        if tune.actors_per_trial:
            return Execution(device="cpu", kind="layers", actors=tune.actors_per_trial)
        return Execution(device="cpu", threads=max(1, int(tune.cpus_per_trial)))

    def run(self, interval: Interval, report: Report) -> None:
        """Trains and measures a trial and saves its record; an error becomes the reason in the record.

        Args:
            interval: the trial and the epoch up to which it trains.
            report: called with the metrics after each epoch.
        """
        folder = trial_folder(self.out, interval.number)
        try:
            with _claimed(folder):
                record = read_record(self.out, interval.number)
                if not record.done:
                    record = self._outcome(record, interval.until, report)
                    record.save(self.out)
        except ClaimedError as error:
            record = read_record(self.out, interval.number).updated(status="lost", reason=one_line(error))
            record.save(self.out)
        report({**_every_epoch(record), "epoch": record.epochs})

    def _outcome(self, record: TrialRecord, until: int | None, report: Report) -> TrialRecord:
        """Trains and measures a trial; returns its record, with the reason if it failed or was lost."""
        try:
            return self._measure(record, until, report)
        except (ClusterError, OSError) as error:
            return record.updated(status="lost", reason=one_line(error))
        except (UserError, FloatingPointError) as error:
            return record.updated(status="failed", reason=one_line(error))
        except Exception as error:
            details = trial_folder(self.out, record.number).with_suffix(".error.txt")
            details.write_text(traceback.format_exc())
            return record.updated(status="failed", reason=f"{type(error).__name__}, see {details}")

    def _measure(self, record: TrialRecord, until: int | None, report: Report) -> TrialRecord:
        """Trains a trial up to an epoch and returns its record with the metrics there."""
        config, folder = self.config(record), trial_folder(self.out, record.number)
        trainer = Trainer(config, folder, resume=True)
        epochs = config.training.epochs
        last = until or epochs
        metrics: dict[str, float] = {}

        def on_epoch(epoch: dict[str, Any]) -> None:
            if epoch["epoch"] < last:  # the last epoch is reported after the robustness is measured
                report({**epoch_metrics(epoch), "epoch": epoch["epoch"]})

        trainer.on_epoch = on_epoch
        with suppress(Paused), tracked(config, folder):
            for epoch in trainer.history:  # a new scheduler does not know the epochs of a resumed run
                on_epoch(epoch)
            if last == epochs:
                trainer.run()
            else:
                trainer.advance(last)
            metrics |= epoch_metrics(trainer.history[-1]) | self._robustness(folder)
            if last < epochs:
                raise Paused  # MLflow shows the run as stopped early until it continues
        return record.updated(
            status="finished" if last == epochs else "paused",
            metrics=metrics,
            measured={**record.measured, last: metrics} if until else {},
            epochs=trainer.epoch,
            seconds=round(trainer.seconds, 3),
            reason="",
        )

    def _robustness(self, folder: Path) -> dict[str, float]:
        """Returns the metrics of the suite for the run in a folder.

        Raises:
            ConfigError: an objective could not be measured.
        """
        tune = self.search.tune
        if tune.robustness is None:
            return {}
        (found,) = evaluate([folder], tune.robustness, device="cpu", actors=0)
        metrics = found.metrics()
        for name in tune.objectives:
            if name not in metrics and name not in EVERY_EPOCH:
                reasons = [attack.reason for attack in found.attacks if attack.reason and attack.attack in name]
                raise ConfigError(f"'{name}' could not be measured: {'; '.join(reasons) or 'it is not defined'}")
        return metrics


def _every_epoch(record: TrialRecord) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if name in EVERY_EPOCH}


def _claimed(folder: Path) -> Claim:
    """Claims a trial's folder; waits for its owner, because a trial outlives a killed driver by some seconds.

    Raises:
        ClaimedError: another process, perhaps a frozen one, still holds the claim after a minute.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return claim(folder)
        except ClaimedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
