"""Runs a search from its file to its results, and resumes the one in its folder."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path

from glr_dist import data
from glr_dist.claims import Claim, claim
from glr_dist.errors import ConfigError
from glr_dist.execution.address import check_reachable
from glr_dist.files import write_atomically
from glr_dist.robustness.conditions import conditions_of, networks_of
from glr_dist.robustness.suite import surrogate_config
from glr_dist.robustness.surrogate import trained_surrogate
from glr_dist.robustness.training_settings import training_settings
from glr_dist.runs import check_empty
from glr_dist.tracking import parent_run, resolved, sync_children
from glr_dist.training.warm_start import located, weights_of
from glr_dist.tuning.ranking import best_trial
from glr_dist.tuning.results import write_results, write_trials
from glr_dist.tuning.search_config import SEARCH_FILE, Search, load_search
from glr_dist.tuning.stored_trials import stored_trials
from glr_dist.tuning.table import trial_table
from glr_dist.tuning.trial_queue import queue_of
from glr_dist.tuning.trial_record import read_records
from glr_dist.tuning.trial_runner import TrialRunner
from glr_dist.tuning.trial_runs import runs_of
from glr_dist.tuning.validation import check_networks

PARENT_RUN = ".mlflow_run"  # id of the run under which the trials are nested


def tune(search: Search, out: Path, *, resume: bool = False) -> str:
    """Runs a search, or the rest of it, and writes `trials.json`, `best.yaml` and plots.

    Args:
        search: the search.
        out: absolute path of its folder, which all machines must share; new or empty, unless `resume`.
        resume: continue the search in the folder, if it has one; trials that are done do not run again.

    Returns:
        The table of the trials.

    Raises:
        UserError: the folder belongs to another search, a point of the space is impossible, the cluster has no room
            for a trial, or no trial finished.
        OSError: the folder cannot be written.
    """
    check_networks(search)
    with _claimed(out):
        search = _pinned(search, out / SEARCH_FILE)
        _check_folder(search, out, resume)
        _save_search(search, out)
        return _run(search, out)


def _run(search: Search, out: Path) -> str:
    records = stored_trials(search, out)
    tracking = resolved(search.base.tracking)
    with parent_run(tracking, out, search.parameters(), parent_run_id(out)) as parent:
        if parent.run_id is not None:
            write_atomically(out / PARENT_RUN, parent.run_id.encode())
        try:
            runner = TrialRunner(search, out, tracking, parent.run_id)
            queue = queue_of(runner, records)
            if queue.done < queue.total:
                check_reachable()
                _train_surrogate(search)
                from glr_dist.tuning.ray_tune import run_trials  # importing Ray Tune takes seconds

                run_trials(runner, queue, records)
            records = read_records(out)
            files = write_results(search, records, out)
        except BaseException:
            with suppress(OSError, ConfigError):  # must not hide the error that ended the search
                write_trials(search, read_records(out), out)
            raise
        finally:  # after the results, which do not depend on a server
            sync_children(tracking, _run_folders(search, out), parent.run_id)
        parent.finish(best_trial(records, search.tune.objectives).metrics, files)
    return trial_table(search, records)


def _run_folders(search: Search, out: Path) -> list[Path]:
    """Returns the folders of the runs of all trials; none if a record is damaged."""
    with suppress(ConfigError):
        records = read_records(out)
        return [folder for r in records for _, folder in runs_of(search, r.point, out, r.number)]
    return []


def _claimed(out: Path) -> Claim:
    """Claims the folder for this process, so that no other search writes to it."""
    try:
        return claim(out, "search")
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror})") from None


def parent_run_id(out: Path) -> str | None:
    """Returns the id of the run under which an earlier process nested the trials, None if it is not known."""
    path = out / PARENT_RUN
    if not path.exists():
        return None
    try:
        run_id = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError):
        run_id = ""
    if not re.fullmatch(r"[\w-]{1,64}", run_id):
        print(f"warning: {path}: is damaged; the trials get a new parent run in MLflow", file=sys.stderr)
        return None
    return run_id


def progress(search: Search, out: Path) -> str:
    """Returns the progress of the search in a folder, e.g. "3 of 16 trials"."""
    queue = queue_of(TrialRunner(search, out, search.base.tracking), read_records(out))
    return f"{queue.done} of {queue.total} {queue.unit}s"


def _check_folder(search: Search, out: Path, resume: bool) -> None:
    """Checks that the folder is new or empty, or holds this search."""
    stored = out / SEARCH_FILE
    if resume and stored.exists():
        search.check_same(stored)
    else:
        advice = "it does not hold a search" if not stored.exists() else "continue it with --resume"
        check_empty(out, f"{advice}, or choose another --out")


def _pinned(search: Search, stored: Path) -> Search:
    """Returns the search with the digest of its weights, so that all trials begin with the same parameters.

    A search that is resumed takes the digest that it recorded, if it names the same weights.
    """
    model = search.base.model
    if model.weights is None or model.weights_sha256 is not None or "model.weights" in search.tune.space:
        return search
    path = located(search.base).model.weights
    assert path is not None
    if stored.exists():
        with suppress(ConfigError):  # a damaged file is reported by `check_same`
            before = load_search(stored).base.model
            if before.weights == path and before.weights_sha256 is not None:
                return search.with_weights(path, before.weights_sha256)
    weights = weights_of(model)
    assert weights is not None
    return search.with_weights(path, weights.digest)


def _save_search(search: Search, out: Path) -> None:
    stored = out / SEARCH_FILE
    try:
        if not stored.exists():
            write_atomically(stored, search.dump().encode())
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror})") from None


def _train_surrogate(search: Search) -> None:
    """Trains the surrogates of the transfer attacks once, before any trial would have to train them."""
    base, during = search.base, training_settings(search.base.robustness)
    for suite in (search.tune.robustness, during.suite, during.at_end):
        if suite is not None and "surrogate" in networks_of(suite, conditions_of(suite, 1)):
            trained_surrogate(surrogate_config(suite.surrogate, base), data.load(base.data, base.code))
