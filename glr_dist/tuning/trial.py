"""One trial of a search: an ordinary run in a folder of its own, which goes on where it was interrupted."""

from __future__ import annotations

import fcntl
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glr_dist.config import Config, Execution, Tracking
from glr_dist.data import root_of
from glr_dist.errors import ClusterError, ConfigError, UserError
from glr_dist.robustness.evaluate import evaluate
from glr_dist.text import one_line
from glr_dist.tracking import Paused, tracked
from glr_dist.training.trainer import Trainer
from glr_dist.tuning import objectives
from glr_dist.tuning.record import Record, folder_of, read
from glr_dist.tuning.settings import Search


class Turn(NamedTuple):
    """What a trial is asked to do.

    Attributes:
        number: of the trial.
        until: after how many epochs it is measured, and pauses unless these are all; None: all of them in one go.
    """

    number: int
    until: int | None = None


@dataclass(frozen=True)
class Trial:
    """What all trials of a search have in common.

    Attributes:
        search: the search.
        out: its folder.
        tracking: where the trials' metrics go beside the folder, resolved.
        parent: the run on the tracking server that they belong to.
    """

    search: Search
    out: Path
    tracking: Tracking
    parent: str | None = None

    def settings(self, record: Record) -> Config:
        """The configuration that a trial is computed by: no field that changes the result differs from the search's."""
        tune, settings = self.search.tune, self.search.settings(record.point)
        execution: dict[str, Any] = {"device": "cpu"}
        if tune.actors_per_trial:
            execution |= {"kind": "layers", "actors": tune.actors_per_trial}
        else:
            execution |= {"threads": max(1, int(tune.cpus_per_trial))}
        tags = dict(self.tracking.tags)
        if self.parent is not None:
            tags["mlflow.parentRunId"] = self.parent
        if record.donor is not None:
            tags["donor"] = str(record.donor)
        tracking = self.tracking.model_copy(update={"tags": tags})
        # Workers have another working directory.
        data = settings.data.model_copy(update={"root": str(root_of(settings.data).absolute())})
        return settings.model_copy(update={"execution": Execution(**execution), "tracking": tracking, "data": data})

    def run(self, turn: Turn, report: Callable[[dict[str, Any]], None]) -> None:
        """Trains, measures, and keeps the record; a failure is a line in it.

        Args:
            turn: the trial, whose record says its point, and how far it goes.
            report: called after each epoch with its figures; it ends the trial by SystemExit.
        """
        number = turn.number
        with _alone(folder_of(self.out, number)):
            record = read(self.out, number)
            if not record.done:
                try:
                    record = self._measured(record, turn.until, report)
                except (ClusterError, OSError) as error:
                    record = record.changed(status="lost", reason=one_line(error))
                except (UserError, FloatingPointError) as error:
                    record = record.changed(status="failed", reason=one_line(error))
                except Exception as error:
                    told = folder_of(self.out, number).with_suffix(".error.txt")
                    told.write_text(traceback.format_exc())
                    record = record.changed(status="failed", reason=f"{type(error).__name__}, see {told}")
                record.keep(self.out)
        report({**_of_every_epoch(record), "epoch": record.epochs})

    def _measured(self, record: Record, until: int | None, report: Callable[[dict[str, Any]], None]) -> Record:
        settings, folder = self.settings(record), folder_of(self.out, record.number)
        trainer = Trainer(settings, folder, resume=True)
        epochs = settings.training.epochs
        last = until or epochs
        metrics: dict[str, float] = {}

        def on_epoch(told: dict[str, Any]) -> None:
            if told["epoch"] < last:  # the last one is told when all is measured
                report({**objectives.of_record(told), "epoch": told["epoch"]})

        trainer.on_epoch = on_epoch
        with suppress(Paused), tracked(settings, folder):
            for told in trainer.history:  # of a run that goes on: the scheduler has forgotten it, and may stop it here
                on_epoch(told)
            if last == epochs:
                trainer.run()
            else:
                trainer.advance(last)
            metrics |= objectives.of_record(trainer.history[-1]) | self._robustness(folder)
            if last < epochs:
                raise Paused  # to MLflow it was stopped early, unless it goes on
        return record.changed(
            status="finished" if last == epochs else "paused",
            metrics=metrics,
            measured={**record.measured, last: metrics} if until else {},
            epochs=trainer.epoch,
            seconds=round(trainer.seconds, 3),
            reason="",
        )

    def _robustness(self, folder: Path) -> dict[str, float]:
        """What the suite measures of the run in a folder.

        Raises:
            ConfigError: an objective is not among it.
        """
        tune = self.search.tune
        if tune.robustness is None:
            return {}
        (found,) = evaluate([folder], tune.robustness, device="cpu", actors=0)
        metrics = found.metrics()
        for name in tune.objectives:
            if name not in metrics and name not in objectives.EVERY_EPOCH:
                reasons = [attack.reason for attack in found.attacks if attack.reason and attack.attack in name]
                raise ConfigError(f"'{name}' could not be measured: {'; '.join(reasons) or 'it is not defined'}")
        return metrics


def _of_every_epoch(record: Record) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if name in objectives.EVERY_EPOCH}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits for a process that still writes to the folder: a trial outlives a killed driver by some seconds."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the process ends, however it does
        yield
