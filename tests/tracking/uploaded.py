"""Tracked runs, and checks of what a server has received."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from glr_dist import tracking
from glr_dist.config import Config
from glr_dist.tracking.metric_names import metrics_of
from glr_dist.tracking.state import State
from glr_dist.training.trainer import Trainer


def tracked_run(config: Config, out: Path, *, resume: bool = False) -> Trainer:
    trainer = Trainer(config, out, resume=resume)
    with tracking.tracked(config, out):
        trainer.run()
    return trainer


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def points(client: MlflowClient, folder: Path) -> tuple[Counter, set]:
    """Returns the metric points on the server, except those from the end of the run; and those in the folder."""
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
