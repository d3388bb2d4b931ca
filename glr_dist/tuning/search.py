"""A search from its file to its results; what it finds in its folder of an earlier one is not done again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from glr_dist import data
from glr_dist.build import device_of, network_of, optimizer_of, schedule_of
from glr_dist.data import Dataset
from glr_dist.errors import ConfigError, UserError
from glr_dist.files import write_atomically
from glr_dist.losses import LOSSES
from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.suite import surrogate_settings
from glr_dist.robustness.surrogate import trained_surrogate
from glr_dist.sites import by_site
from glr_dist.tracking import parent_run, resolved, sync_children
from glr_dist.tuning import report
from glr_dist.tuning.agenda import agenda_of
from glr_dist.tuning.record import folder_of, read_all
from glr_dist.tuning.settings import Search
from glr_dist.tuning.space import BY_SITE, edges, parts
from glr_dist.tuning.trial import Trial

_KEPT = "tune.yaml"
_PARENT = ".mlflow_run"  # the id of the run that the trials are put under


def tune(search: Search, out: Path, *, resume: bool = False) -> str:
    """Runs a search, or what is left of it, and writes `trials.json`, `best.yaml` and plots.

    Args:
        search: what is searched.
        out: its absolute folder, which all machines must share; new or empty, unless `resume`.
        resume: go on with the search in the folder, if there is one; no trial that is done is run again.

    Returns:
        The table of the trials.

    Raises:
        UserError: the folder is another search's, a point of the space is impossible, the cluster has no place for a
            trial, or no trial could be finished.
        OSError: the folder cannot be written.
    """
    _check_folder(search, out, resume)
    _check_networks(search)
    _keep(search, out)
    records = read_all(out)
    tracking = resolved(search.base.tracking)
    kept = out / _PARENT
    known = kept.read_text() if kept.exists() else None
    with parent_run(tracking, out, search.parameters(), known) as parent:
        if parent.run_id is not None:
            write_atomically(kept, parent.run_id.encode())
        try:
            trial = Trial(search, out, tracking, parent.run_id)
            agenda = agenda_of(trial, records)
            if agenda.done < agenda.total:
                _train_surrogate(search)
                from glr_dist.tuning.run import run  # Ray Tune takes seconds to import

                run(trial, agenda, records)
        finally:
            records = read_all(out)
            sync_children(tracking, [folder_of(out, record.number) for record in records], parent.run_id)
            with suppress(OSError):  # what has ended the search is to be told
                report.write_table(search, records, out)
        files = report.write(search, records, out)
        parent.finish(report.best(search, records).metrics, files)
    return report.table(search, records)


def progress(search: Search, out: Path) -> str:
    """How much of the search in a folder is done, as "3 of 16 trials"."""
    agenda = agenda_of(Trial(search, out, search.base.tracking), read_all(out))
    return f"{agenda.done} of {agenda.total} {agenda.unit}s"


def _check_networks(search: Search) -> None:
    """That a network and its optimizer can be made at each edge of the space."""
    loaded: dict[str, Dataset] = {}
    for field, value, point in edges(search.tune.space):
        settings = search.settings(point)
        named = settings.data.model_dump_json()
        if named not in loaded:
            loaded = {named: data.load(settings.data)}
        device = device_of(settings.execution)
        try:
            net = network_of(settings, loaded[named], device)
            schedule_of(settings.training, optimizer_of(settings.training, net), 1)
            net.bind(*loaded[named].train.to(device).batch(slice(0, 2)), LOSSES[settings.training.loss])
        except UserError as error:
            raise ConfigError(f"tune.space.{field}: {value!r} is not possible ({error})") from None
        section, key, pattern = parts(field)
        if pattern and f"{section}.{key}" in BY_SITE:
            patterns = {known: known for known in getattr(getattr(settings, section), key)}
            if pattern not in by_site(patterns, [site.name for site in net.network.sites], field).values():
                raise ConfigError(f"tune.space.{field}: has no effect, a pattern before it has its sites; put it first")


def _check_folder(search: Search, out: Path, resume: bool) -> None:
    """That the folder is new or empty, or this search's."""
    kept = out / _KEPT
    if resume and kept.exists():
        search.check_same(kept)
    elif out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        advice = "it is no search to resume" if resume else "continue it with --resume, or choose another --out"
        raise ConfigError(f"--out: {out} is not empty; {advice}")


def _keep(search: Search, out: Path) -> None:
    """Writes the search into its folder, unless it is there."""
    kept = out / _KEPT
    try:
        if not kept.exists():
            write_atomically(kept, search.dump().encode())
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror})") from None


def _train_surrogate(search: Search) -> None:
    """Once, here, rather than in each of the first trials."""
    suite, base = search.tune.robustness, search.base
    if suite is not None and any(c.threat == "transfer" or c.severity is not None for c in conditions_of(suite, 1)):
        trained_surrogate(surrogate_settings(suite.surrogate, base), data.load(base.data))
