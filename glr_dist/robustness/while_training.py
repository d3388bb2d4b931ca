"""Evaluates a run's robustness while it trains, and at its end, as the section `robustness` asks."""

from __future__ import annotations

import time
from pathlib import Path

from glr_dist import __version__
from glr_dist.build import network_of
from glr_dist.config import Config
from glr_dist.data import Dataset
from glr_dist.errors import ConfigError
from glr_dist.glr import GLR
from glr_dist.robustness.certificates.certify import certifiable, certify_in_training
from glr_dist.robustness.evaluate import evaluate, evaluate_in_training
from glr_dist.robustness.metric_names import report_metrics
from glr_dist.robustness.report import Report, report_name
from glr_dist.robustness.report_files import ReportFiles, read_report
from glr_dist.robustness.subject import Subject, check_suite
from glr_dist.robustness.suite import Suite
from glr_dist.robustness.training_settings import training_settings
from glr_dist.training.trained_run import TrainedRun
from glr_dist.training.trainer import Trainer


class WhileTraining:
    """The evaluations of one run. They use a copy of its network, and keyed streams of their own.

    Args:
        config: the configuration of the run.
        dataset: its data.

    Attributes:
        notes: what is left out, one line each.
        actors: number of Ray actors of the evaluation at the end; 0: this process. Default: as `evaluate`.
        report: the report of the evaluation at the end, once it is done.

    Raises:
        ConfigError: a suite or a setting does not exist, or does not fit the run.
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self._config, self._dataset = config, dataset
        self._settings = training_settings(config.robustness)
        self.notes: tuple[str, ...] = ()
        self.actors: int | None = None
        self.report: Report | None = None
        self._net: GLR | None = None
        self._subject: Subject | None = None
        if not dataset.of_images:
            self.notes = (
                "robustness is not evaluated: attacks, corruptions and certificates need images of one class each, "
                f"not the inputs of {dataset.name}",
            )

    def check(self, trainer: Trainer) -> None:
        """Checks before the training that each evaluation will be possible.

        Raises:
            UserError: a suite does not fit the run, another suite of its name has a report in the run's folder, or the
                network cannot be certified.
        """
        if self.notes:
            return
        for suite, key in ((self._settings.suite, "suite"), (self._settings.at_end, "at_end")):
            if suite is not None:
                try:
                    check_suite(suite, self._config, of_images=True, where="the run")
                except ConfigError as error:
                    raise ConfigError(f"robustness.{key}.{error}") from None
        if self._settings.at_end is not None:
            self._files(trainer, self._settings.at_end).check_replaceable(self._settings.at_end)
        if self._settings.certification is not None:
            try:
                certifiable(self._run(trainer), self._settings.certification)
            except ConfigError as error:
                raise ConfigError(f"robustness.certify.{error}") from None

    def due(self, trainer: Trainer) -> bool:
        """Returns whether the epoch that has ended is one in `robustness.every`, or the last one of the run."""
        every, epoch = self._settings.every, trainer.epoch
        if self.notes or every is None:
            return False
        return epoch % every == 0 or epoch == trainer.config.training.epochs or trainer.ended

    def after_epoch(self, trainer: Trainer) -> dict[str, float]:
        """Evaluates the network after an epoch; returns its metrics by their names, and the seconds that it took."""
        started = time.perf_counter()
        run, suite, certification = self._run(trainer), self._settings.suite, self._settings.certification
        assert suite is not None
        report, self._subject = evaluate_in_training(run, suite, self._unfinished(trainer, suite.name), self._subject)
        metrics = report_metrics(report)
        if certification is not None:
            journal = self._unfinished(trainer, f"{certification.name}-certificates")
            metrics |= certify_in_training(run, certification, journal).metrics()
        return {**metrics, "robustness_seconds": time.perf_counter() - started}

    def at_end(self, trainer: Trainer) -> None:
        """Evaluates the finished run, unless its folder has the report already."""
        if self.notes or (suite := self._settings.at_end) is None:
            return
        self.report = self._existing(trainer, suite)
        if self.report is None:
            (self.report,) = evaluate([trainer.folder.path], suite, actors=self.actors)

    def _existing(self, trainer: Trainer, suite: Suite) -> Report | None:
        """Returns the report of the run's network with this suite, if an earlier process has written it."""
        files = self._files(trainer, suite)
        if not files.report.is_file() or files.ledger.is_file():
            return None
        try:
            report = read_report(files.run, files.name)
        except ConfigError:
            return None
        identity = (report.version, report.suite, report.params_sha256)
        return report if identity == (__version__, suite, trainer.folder.summary()["params_sha256"]) else None

    def _run(self, trainer: Trainer) -> TrainedRun:
        """Returns the run with a copy of its network as it is now."""
        if self._net is None:
            self._net = network_of(self._config, self._dataset, trainer.device, measure=False)
        self._net.load_state_dict(trainer.kept())
        net = self._net.eval()
        return TrainedRun(trainer.folder, trainer.config, self._dataset, net, trainer.epoch, trainer.history)

    @staticmethod
    def _files(trainer: Trainer, suite: Suite) -> ReportFiles:
        return ReportFiles(trainer.folder.path, report_name(suite))

    @staticmethod
    def _unfinished(trainer: Trainer, name: str) -> Path:
        """Returns the file of the finished blocks of an evaluation."""
        return trainer.folder.path / f".robustness-{name}.jsonl"
