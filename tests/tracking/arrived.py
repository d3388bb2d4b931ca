"""Tracked runs, and what a server has of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from glr_dist import config, tracking
from glr_dist.tracking.names import metrics_of
from glr_dist.tracking.state import State
from glr_dist.training.trainer import Trainer


def tracked_run(settings: config.Config, out: Path, *, resume: bool = False) -> Trainer:
    trainer = Trainer(settings, out, resume=resume)
    with tracking.tracked(settings, out):
        trainer.run()
    return trainer


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def points(client: MlflowClient, folder: Path) -> tuple[Counter, set]:
    """The points of the run on the server, but those of its end; and those that the folder has."""
    run_id = State.read(folder).run_id
    stored = Counter(
        (name, point.step, point.value, point.timestamp)
        for name in client.get_run(run_id).data.metrics
        if not name.startswith(("test/", "robust", "clean", "corruption"))
        for point in client.get_metric_history(run_id, name)
    )
    records = [(r["epoch"], r) for r in lines(folder, "metrics.jsonl")] + list(
        enumerate(lines(folder, "system.jsonl"), 1)
    )
    wanted = {
        (name, step, value, int(1000 * r["time"])) for step, r in records for name, value in metrics_of(r).items()
    }
    return stored, wanted


def assert_complete(client: MlflowClient, folder: Path, *, epochs: int) -> None:
    stored, wanted = points(client, folder)
    assert set(stored) == wanted
    assert set(stored.values()) == {1}
    assert {step for name, step, *_ in wanted if name == "train/loss"} == set(range(1, epochs + 1))
