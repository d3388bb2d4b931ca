"""Runs with a budget: the same bits after a resume and on any number of threads; figures in the metrics."""

from __future__ import annotations

import json

import pytest

from glr_dist.training import checkpoint
from glr_dist.training.train import train
from glr_dist.training.trainer import Trainer

BUDGET = (
    "model.hidden=[8, 6]",
    "estimator.copies=auto",
    "estimator.passes=auto",
    "estimator.redraw=auto",
    "estimator.budget=12",
    "estimator.measure_every=2",
)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_resumed_run_has_the_same_bits_and_the_same_figures(tiny, tmp_path):
    config = tiny(*BUDGET)
    whole = train(config, tmp_path / "whole")
    first = Trainer(config, tmp_path / "parts")
    first.advance(1)
    assert first.net.allotment is not None
    assert 0 < first.net.allotment.step < first.net.step, "the resumed run must not measure at its first step"
    again = Trainer(config, tmp_path / "parts", resume=True)
    assert again.net.allotment == first.net.allotment
    assert again.run()["params_sha256"] == whole["params_sha256"]
    clock = ("seconds", "time", "copies_per_second")
    rows = [
        [{key: value for key, value in row.items() if key not in clock} for row in metrics(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_the_metrics_tell_k_and_m_of_each_site_and_count_the_measurements(tiny, tmp_path, capsys):
    config = tiny(*BUDGET, "training.epochs=1")
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    (row,) = metrics(tmp_path / "run")
    allotment = trainer.net.allotment
    assert allotment is not None
    assert {site: row[f"copies/{site}"] for site in allotment.copies} == allotment.copies
    assert {site: row[f"passes/{site}"] for site in allotment.passes} == allotment.passes
    assert row["forward_passes"] > row["step"] * 1.0 + allotment.measuring
    assert f"; {allotment.forward_passes:.1f} forward passes a step" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "epoch-00001.pt")
    assert state["allotment"] == allotment.state()


@pytest.mark.long
def test_the_number_of_threads_does_not_change_a_bit(tiny, tmp_path):
    shas = {train(tiny(*BUDGET, f"execution.threads={n}"), tmp_path / str(n))["params_sha256"] for n in (1, 3)}
    assert len(shas) == 1
