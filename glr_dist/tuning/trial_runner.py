"""Runs one trial of a search: an ordinary run in its own folder, resumed from its last checkpoint."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glr_dist.claims import Claim, ClaimedError, claim
from glr_dist.config import Config, Execution, Tracking
from glr_dist.data import located
from glr_dist.errors import ClusterError, ConfigError, UserError
from glr_dist.robustness.evaluate import evaluate
from glr_dist.text import one_line, shortened
from glr_dist.tracking import Paused, tracked
from glr_dist.training.trainer import Trainer
from glr_dist.tuning.objectives import EVERY_EPOCH, epoch_metrics, is_evaluated, suite_metrics
from glr_dist.tuning.search_config import Search
from glr_dist.tuning.table import point_name
from glr_dist.tuning.trial_record import TrialRecord, read_record, trial_folder
from glr_dist.tuning.trial_runs import margins, means, runs_of

_RUN_NAME = "mlflow.runName"  # the tag that names a run in MLflow
_MAX_NAME = 120  # characters
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


class Trained(NamedTuple):
    """A run that was trained and measured.

    Attributes:
        metrics: metrics on the validation images.
        epochs: number of epochs trained.
        seconds: seconds of training and validation.
    """

    metrics: dict[str, float]
    epochs: int
    seconds: float


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

    def runs(self, record: TrialRecord) -> list[tuple[Config, Path]]:
        """Returns the configuration, with the resources of a trial, and the folder of each run of a trial."""
        runs = runs_of(self.search, record.point, self.out, record.number)
        return [(self._placed(config, record), folder) for config, folder in runs]

    def _placed(self, config: Config, record: TrialRecord) -> Config:
        name = f"{record.number}: {point_name(record)}"
        tags = {_RUN_NAME: shortened(name if self.search.tune.seeds == 1 else f"{name}, seed={config.seed}", _MAX_NAME)}
        tags |= self.tracking.tags
        if self.parent_run is not None:
            tags["mlflow.parentRunId"] = self.parent_run
        if record.parent is not None:
            tags["parent_trial"] = str(record.parent)
        # Workers have another working directory, so the path of the data is made absolute.
        data = located(config.data, config.code)
        tracking = self.tracking.model_copy(update={"tags": tags})
        return config.model_copy(update={"execution": self._execution(), "tracking": tracking, "data": data})

    def _execution(self) -> Execution:
        tune = self.search.tune
        if tune.actors_per_trial:
            return Execution(device="cpu", kind="layers", actors=tune.actors_per_trial)
        return Execution(device=self._device, threads=max(1, int(tune.cpus_per_trial)))

    @property
    def _device(self) -> str:
        return "cuda" if self.search.tune.gpus_per_trial else "cpu"

    def run(self, interval: Interval, report: Report) -> None:
        """Trains and measures a trial and saves its record; an error becomes the reason in the record.

        Args:
            interval: the trial and the epoch up to which it trains.
            report: called with the metrics after each epoch.
        """
        folder = trial_folder(self.out, interval.number)
        try:
            with patient_claim(folder):
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
            status, reason = "lost", one_line(error)
        except (UserError, FloatingPointError) as error:
            status, reason = "failed", one_line(error)
        except Exception as error:
            details = trial_folder(self.out, record.number).with_suffix(".error.txt")
            with suppress(OSError):
                details.write_text(traceback.format_exc())
            status, reason = "failed", f"{type(error).__name__}: {one_line(error, 100)}; see {details}"
        return read_record(self.out, record.number).updated(status=status, reason=reason)  # with its finished seeds

    def _measure(self, record: TrialRecord, until: int | None, report: Report) -> TrialRecord:
        """Trains the runs of a trial up to an epoch and returns its record with the metrics there."""
        runs = self.runs(record)
        if len(runs) == 1:
            ((config, folder),) = runs
            trained = self._train(config, folder, until, report)
            record = record.updated(metrics=trained.metrics, epochs=trained.epochs, seconds=trained.seconds)
        else:
            record = self._measure_seeds(record, runs, report)
        last = until or runs[0][0].training.epochs
        return record.updated(
            status="finished" if last == runs[0][0].training.epochs else "paused",
            measured={**record.measured, last: record.metrics} if until else {},
            reason="",
        )

    def _measure_seeds(self, record: TrialRecord, runs: Sequence[tuple[Config, Path]], report: Report) -> TrialRecord:
        """Trains the runs that have not finished; the record keeps each finished one for a resumed search."""
        for config, folder in runs:
            if config.seed in record.by_seed:
                continue
            trained = self._train(config, folder, None, report)
            record = record.updated(
                by_seed={**record.by_seed, config.seed: trained.metrics},
                epochs=trained.epochs,
                seconds=round(record.seconds + trained.seconds, 3),
            )
            record.save(self.out)
        by_seed = list(record.by_seed.values())
        return record.updated(metrics=means(by_seed), margins=margins(by_seed))

    def _train(self, config: Config, folder: Path, until: int | None, report: Report) -> Trained:
        """Trains a run up to an epoch and measures it there."""
        trainer = Trainer(config, folder, resume=True)
        epochs = config.training.epochs
        last = until or epochs
        watched = self.search.tune.watched if self.search.tune.scheduler != "none" else None
        metrics: dict[str, float] = {}

        def on_epoch(epoch: dict[str, Any]) -> None:
            # The last epoch is reported after the robustness is measured; asha skips epochs without its objective.
            found = epoch_metrics(epoch)
            if epoch["epoch"] < last and (watched is None or watched in found):
                report({**found, "epoch": epoch["epoch"]})

        trainer.on_epoch = on_epoch
        if trainer.evaluator is not None:
            trainer.evaluator.actors = 0
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
        for name in self.search.tune.objectives:
            if name not in metrics:
                reason = "; ".join(trainer.notes) or "an attack that cannot test this network, perhaps"
                raise ConfigError(f"'{name}' was not measured while the trial trained ({reason})")
            if not math.isfinite(metrics[name]):
                raise FloatingPointError(f"'{name}' is {metrics[name]}")
        return Trained(metrics, trainer.epoch, round(trainer.seconds, 3))

    def _robustness(self, folder: Path) -> dict[str, float]:
        """Returns the metrics of the suite for the run in a folder.

        Raises:
            ConfigError: an objective could not be measured.
        """
        tune = self.search.tune
        if tune.robustness is None:
            return {}
        (found,) = evaluate([folder], tune.robustness, device=self._device, actors=0)
        metrics = found.metrics()
        for name in tune.objectives:
            if name not in metrics and name in suite_metrics(tune.robustness):
                reasons = [attack.reason for attack in found.attacks if attack.reason and attack.attack in name]
                raise ConfigError(f"'{name}' could not be measured: {'; '.join(reasons) or 'it is not defined'}")
        return metrics


def _every_epoch(record: TrialRecord) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if name in EVERY_EPOCH or is_evaluated(name)}


def patient_claim(folder: Path) -> Claim:
    """Claims a trial's folder; waits for its owner, because a trial outlives a killed driver by a few seconds.

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
