"""Sends what a server lacks of a run: each part once, whatever was interrupted, in any number of calls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from glr_dist import config
from glr_dist.robustness.report import FILE as REPORT
from glr_dist.robustness.report import read_report
from glr_dist.tracking import machine
from glr_dist.tracking.model import log_model
from glr_dist.tracking.names import metrics_of
from glr_dist.tracking.provenance import dataset_of
from glr_dist.tracking.server import away, connect, experiment_of, log_params, log_tags
from glr_dist.tracking.state import State
from glr_dist.tracking.table import TAG, table_of
from glr_dist.training.checkpoint import last_epoch

_METRICS, _CONFIG, _SUMMARY = "metrics.jsonl", "config.yaml", "summary.json"
_KEY = "glr_dist.key"


class Sender:
    """The way from a run's folder to its MLflow run.

    Args:
        folder: of the run.
        state: what has arrived of it.
        uri: of the server, with credentials.
        answered: called whenever something has arrived.
        stopped: says that nothing more is to be sent.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        uri: str,
        answered: Callable[[], object] = lambda: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder, self._state, self._uri = folder, state, uri
        self._answered, self._stopped = answered, stopped
        self._opened: MlflowClient | None = None
        self._seen: dict[str, tuple[int, float]] = {}

    def send(self) -> None:
        """Sends everything that is there and has not arrived. Cheap where that is nothing.

        Raises:
            Exception: the first that a part has met. What could arrive without that part, has.
        """
        self._open()
        parts: list[Callable[[], None]] = [self._describe, self._metrics, self._system, self._dataset]
        if self._state.end is not None:
            parts += [self._files, self._model, self._summary, self._report]
        errors = []
        for part in [*parts, self._status]:
            if self._stopped():
                break
            try:
                part()
            except Exception as error:
                errors.append(error)
                if away(error):
                    break
        if errors:
            raise errors[0]

    # ------------------------------------------------------------ the run

    @property
    def _client(self) -> MlflowClient:
        assert self._opened is not None
        return self._opened

    @property
    def _run_id(self) -> str:
        assert self._state.run_id is not None
        return self._state.run_id

    def _open(self) -> None:
        """The client, and the run, which an earlier call may have created without hearing of it."""
        if self._opened is None:
            self._opened = connect(self._uri)
        state = self._state
        if state.run_id is None:
            experiment = experiment_of(self._client, state.experiment)
            runs = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{state.key}'", max_results=1)
            tags, name = {**state.tags, _KEY: state.key}, self._folder.absolute().name
            run = runs[0] if runs else self._client.create_run(experiment, state.started, tags, name)
            state.change(run_id=run.info.run_id)
            self._answered()

    def _status(self) -> None:
        end = self._state.end

        def send() -> None:
            if end is None:
                self._client.update_run(self._run_id, "RUNNING")
            else:
                self._client.set_tag(self._run_id, "stopped_early", str(end["stopped_early"]).lower())
                self._client.set_terminated(self._run_id, end["status"], end["time"])

        self._once("status", end or {"status": "RUNNING"}, send)

    # ------------------------------------------------------------ from the beginning

    def _describe(self) -> None:
        tags, settings = self._state.tags, config.read(self._folder / _CONFIG)
        self._once("tags", tags, lambda: log_tags(self._client, self._run_id, tags))
        self._once("params", settings, lambda: log_params(self._client, self._run_id, settings))
        self._file(self._folder / _CONFIG)

    def _metrics(self) -> None:
        # An epoch that no checkpoint has yet will be run again if the run is interrupted now.
        self._lines(_METRICS, lambda _, record: int(record["epoch"]), last_epoch(self._folder / "checkpoints"))

    def _system(self) -> None:
        self._lines(machine.FILE, lambda number, _: number)

    def _lines(self, file: str, step_of: Callable[[int, Mapping[str, Any]], int], last: float = math.inf) -> None:
        """Metrics of the lines of a file: those of the steps that have not arrived, up to the last one."""
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
        # A batch that had arrived, unknown to this side, is sent again: a server keeps equal points once.
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics[start : start + MAX_METRICS_PER_BATCH])
        self._state.change(lines={**self._state.lines, file: step})
        self._answered()

    def _dataset(self) -> None:
        if self._state.dataset is None:  # said once, by the process that trains: another may not have the data
            self._state.change(dataset=dataset_of(config.load_config(self._folder / _CONFIG).data))
        dataset = self._state.dataset
        assert dataset is not None
        entry = DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", "training")])
        self._once("dataset", dataset, lambda: self._client.log_inputs(self._run_id, [entry]))

    # ------------------------------------------------------------ in the end

    def _files(self) -> None:
        for name in (_METRICS, _SUMMARY, "learning_curve.png"):
            self._file(self._folder / name)

    def _model(self) -> None:
        if (summary := self._summarised()) is None:
            return
        wanted = [summary["params_sha256"], self._state.register_as]
        self._once("model", wanted, lambda: log_model(self._client, self._folder, self._state, self._answered))

    def _summary(self) -> None:
        if (summary := self._summarised()) is None:
            return
        time = int(1000 * list(_records(self._folder / _METRICS))[-1]["time"])
        metrics = [
            Metric(name, value, time, summary["epochs"], model_id=self._state.model_id)
            for name, value in metrics_of(summary).items()
            if name.startswith("test/")  # the others are those of the last epoch
        ]
        tags = [RunTag("params_sha256", summary["params_sha256"])]
        self._once("summary", summary, lambda: self._client.log_batch(self._run_id, metrics, tags=tags))

    def _summarised(self) -> dict[str, Any] | None:
        path = self._folder / _SUMMARY
        return json.loads(path.read_bytes()) if path.exists() else None

    def _report(self) -> None:
        path = self._folder / REPORT
        if not path.exists():
            return
        report = read_report(self._folder)
        time = int(1000 * path.stat().st_mtime)

        def send() -> None:
            for file in sorted(self._folder.glob("robustness*")):
                self._file(file, "robustness")
            self._client.log_dict(self._run_id, table_of(report), "robustness/table.json")
            # As `log_table` does, which would add the rows to those of an earlier report.
            self._client.set_tag(self._run_id, *TAG)
            metrics = [Metric(name, value, time, report.epoch) for name, value in report.metrics().items()]
            self._client.log_batch(self._run_id, metrics)

        self._once("report", report.model_dump(mode="json"), send)

    # ------------------------------------------------------------ once

    def _file(self, path: Path, folder: str | None = None) -> None:
        if path.exists():
            content = path.read_bytes()
            self._once(path.name, content, lambda: self._client.log_artifact(self._run_id, path, folder))

    def _once(self, name: str, content: Any, send: Callable[[], object]) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self._state.lacks(name, data):
            send()
            self._state.has(name, data)
            self._answered()


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; an empty one for each that a crash has damaged."""
    records = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):  # else it is being written
            try:
                records.append(json.loads(line))
            except ValueError:
                records.append({})
    return records
