"""Uploads what a server is missing of a run: each part once, over any number of interrupted calls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from glr_dist.config import load_config, read
from glr_dist.figures import pdf_of
from glr_dist.robustness.certificates.files import CertificateFiles, certificate_names, read_certificates
from glr_dist.robustness.metric_names import report_metrics
from glr_dist.robustness.report_files import ReportFiles, read_report, report_names
from glr_dist.runs import RunFolder
from glr_dist.tracking import system_metrics
from glr_dist.tracking.audit import forget_missing
from glr_dist.tracking.metric_names import metrics_of, report_curves
from glr_dist.tracking.model import log_model
from glr_dist.tracking.provenance import dataset_of
from glr_dist.tracking.report_table import TAG, table_of
from glr_dist.tracking.server import (
    address_of,
    connect,
    experiment_id,
    in_batches,
    is_unreachable,
    log_params,
    log_tags,
)
from glr_dist.tracking.state import State

_KEY_TAG = "glr_dist.key"


class Uploader:
    """Uploads a run's folder to its MLflow run.

    Args:
        folder: the run's folder.
        state: the state of its tracking.
        uri: URI of the server, with credentials.
        create: whether to create a missing SQLite database.
        on_answer: called after each successful upload.
        stopped: returns whether to upload nothing more.
        local_work: context of work that does not wait for the server.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        uri: str,
        *,
        create: bool = True,
        on_answer: Callable[[], object] = lambda: None,
        stopped: Callable[[], bool] = lambda: False,
        local_work: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._folder, self._run, self._state = folder, RunFolder(folder), state
        self._uri, self._create = uri, create
        self._on_answer, self._stopped, self._local_work = on_answer, stopped, local_work
        self._connected: MlflowClient | None = None
        self.address: str | None = None
        self._seen: dict[str, tuple[int, float]] = {}

    def upload(self) -> None:
        """Uploads everything in the folder that is not on the server yet. Cheap if there is nothing new.

        Raises:
            Exception: the first error of a part. The other parts are uploaded nevertheless, unless the server cannot
                be reached.
        """
        self._open_run()
        parts: list[Callable[[], None]] = [self._tags, self._params, self._config_file]
        parts += [self._metrics, self._system_metrics, self._dataset]
        parts += [self._part_of_file(path, "code") for path in sorted(self._run.code.glob("*.py"))]
        if self._state.end is not None:
            parts += [
                self._part_of_file(path)
                for path in (
                    self._run.metrics_file,
                    self._run.summary_file,
                    self._run.curve_file,
                    pdf_of(self._run.curve_file),
                    self._run.robustness_curve_file,
                    pdf_of(self._run.robustness_curve_file),
                )
            ]
            parts += [self._model, self._summary, *self._report_parts(), *self._certificate_parts()]
        errors = []
        for part in [*parts, self._status]:
            if self._stopped():
                break
            try:
                part()
            except Exception as error:
                errors.append(error)
                if is_unreachable(error):
                    break
        if errors:
            raise errors[0]

    # ------------------------------------------------------------ the run

    @property
    def _client(self) -> MlflowClient:
        assert self._connected is not None
        return self._connected

    @property
    def _run_id(self) -> str:
        assert self._state.run_id is not None
        return self._state.run_id

    def _connect(self) -> MlflowClient:
        if self._connected is None:
            self._connected = connect(self._uri, create=self._create)
        return self._connected

    def audit(self) -> None:
        """Asks the server what it has of the run, so that `upload` sends what is missing there.

        Raises:
            Exception: the server cannot be reached.
        """
        forget_missing(self._connect(), self._state)

    def _open_run(self) -> None:
        """Connects, and creates the run unless an earlier call did so, perhaps without receiving the answer."""
        self._connect()
        state = self._state
        if state.run_id is None:
            experiment = experiment_id(self._client, state.experiment)
            runs = self._client.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{state.key}'", max_results=1)
            tags = {**state.tags, _KEY_TAG: state.key}
            name = tags.get("mlflow.runName", self._folder.absolute().name)
            run = runs[0] if runs else self._client.create_run(experiment, state.started, tags, name)
            state.change(run_id=run.info.run_id)
            self._on_answer()
        if self.address is None and self._uri.startswith(("http:", "https:")):
            experiment = self._client.get_run(self._run_id).info.experiment_id
            self.address = address_of(self._uri, experiment, self._run_id)

    def _status(self) -> None:
        end = self._state.end

        def upload() -> None:
            if end is None:
                self._client.update_run(self._run_id, "RUNNING")
            else:
                self._client.set_tag(self._run_id, "stopped_early", str(end["stopped_early"]).lower())
                self._client.set_terminated(self._run_id, end["status"], end["time"])

        self._once("status", end or {"status": "RUNNING"}, upload)

    # ------------------------------------------------------------ from the start of the run

    def _tags(self) -> None:
        tags = self._state.tags
        self._once("tags", tags, lambda: log_tags(self._client, self._run_id, tags))

    def _params(self) -> None:
        config = read(self._run.config_file)
        self._once("params", config, lambda: log_params(self._client, self._run_id, config))

    def _config_file(self) -> None:
        self._file(self._run.config_file)

    def _metrics(self) -> None:
        # An interrupted run repeats the epochs after its last checkpoint: they are uploaded once they are final.
        self._lines(self._run.metrics_file.name, lambda _, record: int(record["epoch"]), self._run.last_epoch())

    def _system_metrics(self) -> None:
        self._lines(system_metrics.FILE, lambda number, _: number)

    def _lines(self, file: str, step_of: Callable[[int, Mapping[str, Any]], int], last: float = math.inf) -> None:
        """Uploads the metrics of a file's lines: the steps that are missing, up to `last`.

        Args:
            file: the file's name.
            step_of: returns the step of a line, given its number (from 1) and content.
            last: the last step to upload.
        """
        path, done = self._folder / file, self._state.lines.get(file, 0)
        now = path.stat().st_size if path.exists() else 0, last
        if self._seen.get(file) == now:
            return
        batch: list[Metric] = []
        for number, record in enumerate(_records(path), 1):
            step = step_of(number, record) if record else 0
            if not done < step <= last:
                continue
            batch += [Metric(k, v, int(1000 * record["time"]), step) for k, v in metrics_of(record).items()]
            if len(batch) >= MAX_METRICS_PER_BATCH:
                self._batch(file, batch, step)
                batch = []
            done = step
        if batch:
            self._batch(file, batch, done)
        self._seen[file] = now

    def _batch(self, file: str, metrics: list[Metric], step: int) -> None:
        # A batch whose answer was lost is uploaded again: a server stores equal points once.
        in_batches(metrics, MAX_METRICS_PER_BATCH, lambda some: self._client.log_batch(self._run_id, some))
        self._state.change(lines={**self._state.lines, file: step})
        self._on_answer()

    def _dataset(self) -> None:
        if self._state.dataset is None:  # described by the process that trains: another one may not have the data
            with self._local_work():
                config = load_config(self._run.config_file)
                self._state.change(dataset=dataset_of(config.data, config.code))
        dataset = self._state.dataset
        assert dataset is not None
        entry = DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", "training")])
        self._once("dataset", dataset, lambda: self._client.log_inputs(self._run_id, [entry]))

    # ------------------------------------------------------------ after the end of the run

    def _part_of_file(self, path: Path, folder: str | None = None) -> Callable[[], None]:
        return lambda: self._file(path, folder)

    def _model(self) -> None:
        if (summary := self._read_summary()) is None:
            return
        identity = [summary["params_sha256"], self._state.register_as]
        self._once("model", identity, lambda: log_model(self._client, self._folder, self._state, self._local_work))

    def _summary(self) -> None:
        if (summary := self._read_summary()) is None:
            return
        time = int(1000 * list(_records(self._run.metrics_file))[-1]["time"])
        metrics = [
            Metric(name, value, time, summary["epochs"], model_id=self._state.model_id)
            for name, value in metrics_of(summary).items()
            if name.startswith("test/")  # the others repeat the last epoch
        ]
        tags = [RunTag("params_sha256", summary["params_sha256"])]
        self._once("summary", summary, lambda: self._client.log_batch(self._run_id, metrics, tags=tags))

    def _read_summary(self) -> dict[str, Any] | None:
        return self._run.summary() if self._run.summary_file.exists() else None

    def _report_parts(self) -> list[Callable[[], None]]:
        """Returns the parts of all reports: each of their files, then the report's table and metrics."""
        parts: list[Callable[[], None]] = []
        for files in (ReportFiles(self._folder, name) for name in report_names(self._folder)):
            parts += [self._part_of_file(path, "robustness") for path in files.all()]
            parts.append(partial(self._report, files))
        return parts

    def _report(self, files: ReportFiles) -> None:
        report = read_report(self._folder, files.name)
        time = int(1000 * files.report.stat().st_mtime)

        def upload() -> None:
            self._client.log_dict(self._run_id, table_of(report), "robustness/table.json")
            # `log_table` would set this tag too, but append the rows to those of an earlier report.
            self._client.set_tag(self._run_id, *TAG)
            metrics = [Metric(name, value, time, report.epoch) for name, value in report_metrics(report).items()]
            for name, points in report_curves(report).items():
                metrics += [Metric(name, value, time, step) for step, value in points]
            in_batches(metrics, MAX_METRICS_PER_BATCH, lambda some: self._client.log_batch(self._run_id, some))

        self._once(f"report {files.name}", report.model_dump(mode="json"), upload)

    def _certificate_parts(self) -> list[Callable[[], None]]:
        """Returns the parts of all certificates: each of their files, then their metrics."""
        parts: list[Callable[[], None]] = []
        for files in (CertificateFiles(self._folder, name) for name in certificate_names(self._folder)):
            parts += [self._part_of_file(path, "certificates") for path in files.all()]
            parts.append(partial(self._certificates, files))
        return parts

    def _certificates(self, files: CertificateFiles) -> None:
        report = read_certificates(self._folder, files.name)
        time = int(1000 * files.report.stat().st_mtime)
        metrics = [Metric(name, value, time, report.epoch) for name, value in report.metrics().items()]
        content = report.model_dump(mode="json")
        self._once(f"certificates {files.name}", content, lambda: self._client.log_batch(self._run_id, metrics))

    # ------------------------------------------------------------ each content once

    def _file(self, path: Path, folder: str | None = None) -> None:
        if path.is_file():
            content = path.read_bytes()
            self._once(path.name, content, lambda: self._client.log_artifact(self._run_id, path, folder))

    def _once(self, name: str, content: Any, upload: Callable[[], object]) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self._state.is_missing(name, data):
            upload()
            self._state.record_upload(name, data)
            self._on_answer()


def _records(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a file; an empty record for each line that a crash has damaged."""
    records = []
    for line in path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):  # else it is still being written
            try:
                record = json.loads(line)
            except ValueError:
                record = {}
            records.append(record if isinstance(record, dict) else {})
    return records
