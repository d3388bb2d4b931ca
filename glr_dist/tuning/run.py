"""Ray Tune runs the trials of a search.

Their records, written whole by whoever knows, are the state of the search, not Ray Tune's own snapshots: these are
taken every few seconds and copied file by file, and a driver that is killed would lose trials with them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import remove_placement_group
from tqdm import tqdm

from glr_dist.errors import ClusterError
from glr_dist.execution.cluster import connected, fitting, reserve, resources
from glr_dist.tuning import objectives, report
from glr_dist.tuning.agenda import Agenda
from glr_dist.tuning.record import Record, folder_of, read, read_all
from glr_dist.tuning.trial import Trial, Turn

_RESTARTS = 3  # of a trial whose process dies
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints even where nothing is asked for
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end the search as if it were complete
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial keeps its own metrics
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # of snapshots that nothing reads
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # for a trial that is stopped to close its files
}


def run(trial: Trial, agenda: Agenda, records: Sequence[Record]) -> None:
    """Runs what is left of a search.

    Args:
        trial: what its trials have in common.
        agenda: what is left.
        records: of the trials that there are.

    Raises:
        ClusterError: the cluster has no place for a trial.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    settings, storage = trial.search.tune, trial.out / ".tune"
    bundles = [{"CPU": 1.0}] * settings.actors_per_trial or [{"CPU": settings.cpus_per_trial}]
    head = [{"CPU": 0.0}] if settings.actors_per_trial else []
    cpus = sum(bundle["CPU"] for bundle in bundles)
    # As a parameter it goes through memory alone.
    train = tune.with_parameters(_train, trial=trial)

    with connected(cpus * (settings.concurrent or 1)) as own:
        _check_place(bundles, trial.search.base.execution.placement_timeout, own=own)
        fits = fitting({"CPU": cpus}) if own else None  # a cluster of others may grow
        shutil.rmtree(storage, ignore_errors=True)
        with _Progress(trial, agenda) as progress:
            suggestions = Suggestions(trial, agenda, progress)
            try:
                tune.Tuner(
                    tune.with_resources(train, tune.PlacementGroupFactory(head + bundles)),
                    tune_config=tune.TuneConfig(
                        search_alg=suggestions,
                        scheduler=_scheduler(trial, records),
                        num_samples=agenda.total - agenda.done,
                        max_concurrent_trials=settings.concurrent or fits,
                        reuse_actors=True,  # importing torch takes longer than a small trial
                    ),
                    run_config=tune.RunConfig(
                        name="search",
                        storage_path=str(storage),
                        verbose=0,
                        failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                    ),
                ).fit()
            finally:
                shutil.rmtree(storage, ignore_errors=True)


def _train(config: dict[str, Any], trial: Trial) -> None:
    trial.run(Turn(**config), tune.report)


class Suggestions(Searcher):
    """Hands turns to Ray Tune, to which each is a trial, and keeps what becomes of them.

    Args:
        trial: what the trials have in common.
        agenda: says which turns.
        progress: is told of each turn that ends.
    """

    def __init__(self, trial: Trial, agenda: Agenda, progress: _Progress) -> None:
        super().__init__()
        self._trial, self._agenda, self._progress = trial, agenda, progress
        self._turns: dict[str, Turn] = {}

    def __getstate__(self) -> dict[str, object]:
        """Nothing for Ray Tune's snapshots: a tracking server's address may hold a password."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # or FINISHED
        if self._agenda.done == self._agenda.total:
            return str(Searcher.FINISHED)
        if (turn := self._agenda.next()) is None:
            return None
        self._turns[trial_id] = turn
        return turn._asdict()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        record = read(self._trial.out, self._turns[trial_id].number)
        if record.status == "started":
            record = _unfinished(record, result or {}, died=error)
            record.keep(self._trial.out)
        self._agenda.tell(record)
        report.write_table(self._trial.search, read_all(self._trial.out), self._trial.out)
        self._progress.tell(record)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The agenda learns of a turn when it ends."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Ray Tune asks for a file

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored from Ray Tune's snapshots."""


def _unfinished(record: Record, result: Mapping[str, Any], *, died: bool) -> Record:
    """The record of a trial that did not reach its end: the scheduler stopped it, or its process died."""
    if died:
        return record.changed(status="lost", reason=f"its process died {_RESTARTS + 1} times")
    metrics = {name: result[name] for name in objectives.EVERY_EPOCH if name in result}
    return record.changed(
        status="stopped", metrics=metrics, epochs=result["epoch"], seconds=round(result["time_total_s"], 3)
    )


def _scheduler(trial: Trial, records: Sequence[Record]) -> TrialScheduler:
    """ASHA, as if it had seen the trials that are done; or none."""
    settings = trial.search.tune
    if settings.scheduler == "none" or settings.watched is None:
        return FIFOScheduler()
    scheduler: Any = ASHAScheduler(
        time_attr="epoch",
        metric=settings.watched,
        mode=objectives.direction(settings.watched)[:3],
        grace_period=settings.grace,
        max_t=trial.search.base.training.epochs + 1,  # it must not stop a trial that has yet to be measured
    )
    for record in records:
        if record.done:
            before = SimpleNamespace(trial_id=f"before-{record.number}")
            scheduler.on_trial_add(None, before)
            for line in (folder_of(trial.out, record.number) / "metrics.jsonl").read_text().splitlines():
                told = json.loads(line)
                scheduler.on_trial_result(None, before, {"epoch": told["epoch"], **objectives.of_record(told)})
    return scheduler  # type: ignore[no-any-return]


def _check_place(bundles: Sequence[Mapping[str, float]], timeout: float, *, own: bool) -> None:
    """Ray Tune would wait for ever for a trial's place."""
    try:
        remove_placement_group(reserve(len(bundles), bundles[0], timeout, own=own))
    except ClusterError:
        key = "actors_per_trial" if len(bundles) > 1 else "cpus_per_trial"
        raise ClusterError(
            f"tune.{key}: no place for a trial of {len(bundles)} x {bundles[0]['CPU']:g} CPU, "
            f"the cluster has {resources()}; lower it, or raise execution.placement_timeout ({timeout:g} s)"
        ) from None


class _Progress:
    """A bar over the turns, or a line for each that ended where there is no terminal to draw one on."""

    def __init__(self, trial: Trial, agenda: Agenda) -> None:
        self._objectives, self._agenda = trial.search.tune.objectives, agenda
        self._bar = tqdm(
            total=agenda.total,
            initial=agenda.done,
            disable=not sys.stderr.isatty(),
            unit=agenda.unit,
            dynamic_ncols=True,
        )

    def tell(self, record: Record) -> None:
        """That a turn ended."""
        if self._bar.disable:
            line = f"trial {record.number:<3} {report.described(record, self._objectives)}"
            print(f"{line}  ({self._agenda.done} of {self._agenda.total})", flush=True)
        else:
            self._bar.set_postfix_str(f"trial {record.number} {record.status}", refresh=False)
            self._bar.update()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
