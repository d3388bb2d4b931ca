"""Reproduces the paper's results on one data set: trains, evaluates, and writes a table, a plot and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from glr_dist import data
from glr_dist.claims import claim
from glr_dist.config import Tracking
from glr_dist.data import located
from glr_dist.errors import ConfigError, UserError
from glr_dist.execution.address import check_reachable
from glr_dist.figures import draw, pdf_of
from glr_dist.files import write_atomically
from glr_dist.reproduction.plot import over_figure, tradeoff_figure
from glr_dist.reproduction.progress import Progress
from glr_dist.reproduction.recipe import PAPER, Plan, PlannedRun, planned_runs
from glr_dist.reproduction.results import ModelResult, model_result, seed_result, with_equal
from glr_dist.reproduction.sweep import label
from glr_dist.reproduction.table import json_of, lines_of
from glr_dist.reproduction.training import report_of_run, train_runs
from glr_dist.robustness.suite import surrogate_config
from glr_dist.robustness.surrogate import trained_surrogate
from glr_dist.runs import RunFolder, check_empty
from glr_dist.tracking import parent_run, resolved, sync_children
from glr_dist.tuning.search import PARENT_RUN, parent_run_id

SETTINGS = "reproduction.json"


def reproduce(plan: Plan, *, actors: int | None = None, gpus: float = 0) -> str:
    """Trains and evaluates all models, or the rest of them; writes `table.md`, `table.json` and `tradeoff.png`.

    Args:
        plan: the reproduction.
        actors: number of Ray actors, each with one run at a time; 0: none. Default: as many as fit.
        gpus: GPUs, or a share of one, of an actor.

    Returns:
        The table.

    Raises:
        UserError: the folder belongs to another reproduction, a configuration is invalid, the cluster has no room, or
            a run failed; the finished ones are kept.
        OSError: the folder cannot be written.
    """
    with claim(plan.out, "reproduction"):
        runs = planned_runs(plan)
        _begin(plan)
        tracking = resolved(runs[0].config.tracking)
        params = {**plan.described(), "seeds": plan.seeds}
        failed: dict[str, str] = {}
        named = {key: params[key] for key in ("data", "models", "over", "quick", "seeds")}
        with parent_run(tracking, plan.out, named, parent_run_id(plan.out), "glr-dist reproduce") as parent:
            if parent.run_id is not None:
                write_atomically(plan.out / PARENT_RUN, parent.run_id.encode())
            runs = [_placed(run, plan, tracking, parent.run_id) for run in runs]
            try:
                left = [run for run in runs if report_of_run(run, plan.suite) is None]
                if left:
                    _train_surrogate(plan, left[0])
                    if actors != 0:
                        check_reachable()
                with Progress(runs, len(runs) - len(left)) as progress:
                    for run, reason in train_runs(left, actors, gpus) if left else ():
                        if reason:
                            failed[run.folder.name] = reason
                        progress.finished(run, reason)
                        _write(plan, _results(plan, runs), failed, runs)
                models = _results(plan, runs)
                text, files = _write(plan, models, failed, runs, picture=True)
            finally:
                sync_children(tracking, [run.folder for run in runs], parent.run_id)
            parent.finish(_metrics(models), files)
    if failed:
        name, reason = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed ({name}: {reason}); the same command tries them again"
        )
    return text


def _begin(plan: Plan) -> None:
    """Writes the settings into a new folder, or checks that it holds this reproduction.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    path = plan.out / SETTINGS
    if not path.exists():
        check_empty(plan.out, "it does not hold a reproduction; choose another --out")
        try:
            write_atomically(path, (json.dumps(plan.described(), indent=2) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"--out: {plan.out} cannot be written ({error.strerror})") from None
        return
    try:
        before = {"models": PAPER, "over": None, **json.loads(path.read_text(encoding="utf-8"))}  # as of old folders
        differs = next((key for key, value in plan.described().items() if before[key] != value), None)
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: is damaged; choose another --out") from None
    if differs is not None:
        advice = "choose another --out" if differs != "quick" else "--quick and the whole reproduction need two folders"
        raise ConfigError(f"--out: {plan.out} holds another reproduction ('{differs}' differs); {advice}")


def _placed(run: PlannedRun, plan: Plan, tracking: Tracking, parent: str | None) -> PlannedRun:
    """Returns a run with absolute paths, since tasks have another working directory, and its place in MLflow."""
    tags = {"mlflow.runName": f"{plan.data}/{run.folder.name}", "reproduction": plan.data, **tracking.tags}
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    changes = {
        "data": located(run.config.data, run.config.code),
        "tracking": tracking.model_copy(update={"tags": tags}),
    }
    return replace(run, config=run.config.model_copy(update=changes))


def _train_surrogate(plan: Plan, run: PlannedRun) -> None:
    """Trains the surrogate of the transfer attacks once, before all runs would train it."""
    config = run.config
    trained_surrogate(surrogate_config(plan.suite.surrogate, config), data.load(config.data, config.code))


def _results(plan: Plan, runs: Sequence[PlannedRun]) -> list[ModelResult]:
    """Returns the results of the finished runs, model by model."""
    values = [label(value) for value in plan.over.values] if plan.over else [""]
    models = []
    for name, value in product(sorted({run.model for run in runs}), values):
        own = [run for run in runs if (run.model, run.value) == (name, value)]
        found = [(run, report) for run in own if (report := report_of_run(run, plan.suite))]
        if found:
            seeds = [seed_result(RunFolder(run.folder), report, run.config) for run, report in found]
            models.append(model_result(name, value, found[0][1], seeds))
    return with_equal(models)


def _write(
    plan: Plan,
    models: Sequence[ModelResult],
    failed: dict[str, str],
    runs: Sequence[PlannedRun],
    *,
    picture: bool = False,
) -> tuple[str, list[Path]]:
    """Writes the results; returns the table and the files."""
    page, values, plot = (plan.out / name for name in ("table.md", "table.json", "tradeoff.png"))
    missing = len(runs) - sum(len(model.seeds) for model in models) - len(failed)
    text = "\n".join(lines_of(plan, models, failed, missing)).rstrip() + "\n"
    write_atomically(values, (json.dumps(json_of(plan, models, failed), indent=2) + "\n").encode())
    write_atomically(page, text.encode())
    figure = over_figure if plan.over else tradeoff_figure
    if picture and models and draw(plot, lambda: figure(models)):
        write_atomically(page, f"{text}\n![]({plot.name})\n".encode())
    return text, [path for path in (page, values, plot, pdf_of(plot)) if path.exists()]


def _metrics(models: Sequence[ModelResult]) -> dict[str, float]:
    """Returns the means by their names on a tracking server, such as `lrt/fgsm_transfer`."""
    conditions = {name for model in models for seed in model.seeds for name in seed.final}
    return {
        f"{model.name}/{condition.replace(', ', '_').replace(' ', '_')}": mean
        for model in models
        for condition in sorted(conditions)
        if (mean := model.mean(condition)) is not None
    }
