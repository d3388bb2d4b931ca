"""The driver of a search: Ray Tune runs the trials; their records, not Ray's own snapshots, are what it is resumed from.

Ray Tune's snapshot is at most every few seconds and copied file by file: a killed driver would lose trials with it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from glr_dist import data
from glr_dist.errors import ClusterError, ConfigError
from glr_dist.files import write_atomically
from glr_dist.losses import LOSSES
from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.suite import surrogate_settings
from glr_dist.robustness.surrogate import trained_surrogate
from glr_dist.tracking import parent_run, resolved
from glr_dist.training.setup import device_of, network_of, optimizer_of, schedule_of
from glr_dist.tuning import objectives, report
from glr_dist.tuning.record import Record, folder_of, read, read_all, table_json
from glr_dist.tuning.settings import Search
from glr_dist.tuning.space import edges
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial import Trial

TABLE = "trials.json"
_KEPT = "tune.yaml"
_RESTARTS = 3  # of a trial whose process died
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the other one prints even where nothing is asked for
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end the search as if it were complete
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial keeps its own metrics
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # for a trial that is stopped to close its files
}


def tune(search: Search, out: Path, *, resume: bool = False) -> str:
    """Runs a search, or what is left of it, and writes `trials.json`, `best.yaml` and plots.

    Args:
        search: what is searched.
        out: its folder, which all machines must share; new or empty, unless `resume`.
        resume: go on with the search in the folder, if there is one; no trial that is done is run again.

    Returns:
        The table of the trials.

    Raises:
        UserError: the folder is another search's, a point of the space is impossible, the cluster has no place for a
            trial, or no trial could be finished.
        OSError: the folder cannot be written.
    """
    _open(search, out, resume)
    _check_networks(search)
    records = read_all(out)
    tracking = resolved(search.base.tracking)
    parameters = {field: allowed.described() for field, allowed in search.tune.space.items()}
    with parent_run(tracking, out.name, parameters) as parent:
        if sum(record.done for record in records) < search.tune.number:
            _train_surrogate(search)
            _run(Trial(search, out, tracking, parent.run_id), records)
        records = read_all(out)
        files = report.write(search, records, out)
        parent.finish(report.best_metrics(search, records), [out / TABLE, *files])
    return report.table(search, records)


# ---------------------------------------------------------------- before the trials


def _open(search: Search, out: Path, resume: bool) -> None:
    kept = out / _KEPT
    try:
        if resume and kept.exists():
            search.check_same(kept)
            return
        if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
            advice = "it is no search to resume" if resume else "continue it with --resume, or choose another --out"
            raise ConfigError(f"--out: {out} is not empty; {advice}")
        write_atomically(kept, search.dump().encode())
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror})") from None


def _check_networks(search: Search) -> None:
    """That a network and its optimizer can be made at each edge of the space."""
    loaded: dict[str, data.Dataset] = {}
    for field, value, point in edges(search.tune.space):
        settings = search.settings(point)
        named = settings.data.model_dump_json()
        if named not in loaded:
            loaded = {named: data.load(settings.data)}
        try:
            net = network_of(settings, loaded[named], device_of(settings.execution))
            optimizer = optimizer_of(settings.training, net)
            schedule_of(settings.training, optimizer, 1)
            net.bind(*loaded[named].train.to(next(net.parameters()).device).batch(slice(0, 2)), LOSSES[settings.training.loss])
        except ConfigError as error:
            raise ConfigError(f"tune.space.{field}: {value!r} is not possible ({error})") from None


def _train_surrogate(search: Search) -> None:
    """Once, here, rather than in each of the first trials."""
    suite, base = search.tune.robustness, search.base
    if suite is not None and any(c.threat == "transfer" or c.severity is not None for c in conditions_of(suite, 1)):
        trained_surrogate(surrogate_settings(suite.surrogate, base), data.load(base.data))


# ---------------------------------------------------------------- the trials


def _run(trial: Trial, records: Sequence[Record]) -> None:
    """All trials that are not done, by Ray Tune."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from ray import tune
    from ray.tune.search import Searcher

    from glr_dist.execution import cluster

    settings, out = trial.search.tune, trial.out
    study = Study(settings, trial.search.base.model_dump(mode="json"), records)
    waiting = deque(record for record in records if not record.done)
    fresh = iter(range(len(records), settings.number))
    ended = [record for record in records if record.done]

    class Suggestions(Searcher):  # type: ignore[misc]
        """Hands interrupted trials and then new ones to Ray Tune, and keeps what becomes of them."""

        def __init__(self) -> None:
            super().__init__()
            self._numbers: dict[str, int] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str:
            if waiting:
                record = waiting.popleft().changed(status="started", reason="")
                study.again(record)
            elif (number := next(fresh, None)) is not None:
                record = Record(number=number, point=study.suggest(number))
            else:
                return str(Searcher.FINISHED)
            record.keep(out)
            self._numbers[trial_id] = record.number
            return {"number": record.number}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            record = read(out, self._numbers[trial_id])
            if record.status == "started":
                record = _interrupted(record, result or {}, died=error)
                record.keep(out)
            study.tell(record)
            ended.append(record)
            write_atomically(out / TABLE, table_json(ended, settings.objectives, out))
            progress.tell(record)

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None: ...

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()  # Ray Tune asks for a file; the records are the state

        def restore(self, checkpoint_path: str) -> None: ...

    def run(config: dict[str, int]) -> None:
        trial.run(config["number"], tune.report)

    bundles = [{"CPU": 1.0}] * settings.actors_per_trial or [{"CPU": settings.cpus_per_trial}]
    with _ray(sum(bundle["CPU"] for bundle in bundles) * (settings.concurrent or 1)) as own, _Progress(trial) as progress:
        _check_place(bundles, trial.search.base.execution.placement_timeout, own=own)
        head = [{"CPU": 0.0}] if settings.actors_per_trial else []
        fits = max(1, int(cluster.fitting({"CPU": 1})) // max(1, round(sum(b["CPU"] for b in bundles)))) if own else None
        storage = out / ".tune"
        shutil.rmtree(storage, ignore_errors=True)
        try:
            tune.Tuner(
                tune.with_resources(run, tune.PlacementGroupFactory(head + bundles)),
                tune_config=tune.TuneConfig(
                    search_alg=Suggestions(),
                    scheduler=_scheduler(trial, ended),
                    num_samples=settings.number - len(ended),
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


def _interrupted(record: Record, result: Mapping[str, Any], *, died: bool) -> Record:
    """The record of a trial that did not reach its end: the scheduler stopped it, or its process died."""
    if died:
        return record.changed(status="failed", reason=f"its process died {_RESTARTS + 1} times")
    metrics = {name: result[name] for name in objectives.EVERY_EPOCH if name in result}
    seconds = round(result.get("time_total_s", 0.0), 3)
    return record.changed(status="stopped", metrics=metrics, epochs=result.get("epoch", 0), seconds=seconds)


def _scheduler(trial: Trial, ended: Sequence[Record]) -> Any:
    """ASHA, as if it had seen the trials that ended before; or none."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    settings = trial.search.tune
    if settings.scheduler == "none" or settings.watched is None:
        return FIFOScheduler()
    scheduler: Any = ASHAScheduler(
        time_attr="epoch",
        metric=settings.watched,
        mode={"minimize": "min", "maximize": "max"}[objectives.direction(settings.watched)],
        grace_period=settings.grace,
        max_t=trial.search.base.training.epochs + 1,  # it must not stop a trial that has yet to be measured
    )
    for record in ended:
        before = SimpleNamespace(trial_id=f"before-{record.number}")
        scheduler.on_trial_add(None, before)
        for line in (folder_of(trial.out, record.number) / "metrics.jsonl").read_text().splitlines():
            told = json.loads(line)
            scheduler.on_trial_result(None, before, {"epoch": told["epoch"], **objectives.of_record(told)})
    return scheduler


@contextmanager
def _ray(cpus: float) -> Iterator[bool]:
    """A connection to Ray, ended after if it was not there before; yields whether the cluster is this process's own."""
    import ray

    from glr_dist.execution.cluster import connect

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    before = ray.is_initialized()
    try:
        yield connect(cpus)
    finally:
        if not before:
            ray.shutdown()


def _check_place(bundles: Sequence[Mapping[str, float]], timeout: float, *, own: bool) -> None:
    """Ray Tune would wait for ever for a trial's place."""
    from ray.util.placement_group import remove_placement_group

    from glr_dist.execution.cluster import reserve, resources

    try:
        remove_placement_group(reserve(len(bundles), bundles[0], timeout, own=own))
    except ClusterError:
        key = "actors_per_trial" if len(bundles) > 1 else "cpus_per_trial"
        raise ClusterError(
            f"tune.{key}: no place for a trial of {len(bundles)} x {bundles[0]['CPU']:g} CPU, "
            f"the cluster has {resources()}; lower it, or raise execution.placement_timeout ({timeout:g} s)"
        ) from None


class _Progress:
    """A bar over the trials, or a line for each that ended where there is no terminal to draw one on."""

    def __init__(self, trial: Trial) -> None:
        self._objectives, self._number = trial.search.tune.objectives, trial.search.tune.number
        before = sum(record.done for record in read_all(trial.out))
        self._bar = tqdm(
            total=self._number, initial=before, disable=not sys.stderr.isatty(), unit="trial", dynamic_ncols=True
        )
        self._ended, self._best = before, ""

    def tell(self, record: Record) -> None:
        """That a trial ended."""
        self._ended += 1
        if self._bar.disable:
            line = f"trial {record.number:<3} {report.described(record, self._objectives)}"
            print(f"{line}  ({self._ended} of {self._number})", flush=True)
        else:
            self._bar.set_postfix_str(f"trial {record.number} {record.status}", refresh=False)
            self._bar.update()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
