"""Trials with several seeds: their runs, means and confidence intervals."""

from __future__ import annotations

import json

import pytest
import yaml
from scipy import stats

from glr_dist.config import load_config
from glr_dist.errors import ConfigError
from glr_dist.training.train import train
from glr_dist.tuning.ranking import ranked
from glr_dist.tuning.results import write_results
from glr_dist.tuning.search import tune
from glr_dist.tuning.table import trial_line, trial_table
from glr_dist.tuning.trial_record import TrialRecord, read_record, read_records, trial_folder
from glr_dist.tuning.trial_runner import Interval, TrialRunner
from glr_dist.tuning.trial_runs import margins, means, runs_of

SEEDS = ["tune.seeds=3", "seed=5", "tune.trials=1"]


def test_the_interval_is_students():
    by_seed = [{"a": value, "b": 1.0, f"c{value}": 2.0} for value in (0.90, 0.93, 0.96)]
    assert means(by_seed) == pytest.approx({"a": 0.93, "b": 1.0})
    low, high = stats.t.interval(0.95, 2, loc=0.93, scale=stats.sem([0.90, 0.93, 0.96]))
    assert margins(by_seed) == pytest.approx({"a": (high - low) / 2, "b": 0.0})
    assert margins(by_seed[:1]) == {}


@pytest.mark.slow
def test_a_trial_of_three_seeds_is_three_ordinary_runs(tiny_search, tmp_path):
    search, out = tiny_search(*SEEDS), tmp_path / "out"
    TrialRecord(number=0, point={"noise.scale": 0.7}).save(out)
    TrialRunner(search, out, search.base.tracking).run(Interval(0), lambda metrics: None)
    (record,) = records = read_records(out)
    assert (record.status, record.epochs) == ("finished", 2)
    assert list(record.by_seed) == [5, 6, 7]
    for seed, (config, folder) in zip((5, 6, 7), runs_of(search, record.point, out, 0), strict=True):
        assert folder == trial_folder(out, 0) / f"seed-{seed}"
        assert config.seed == seed
        again = train(config, tmp_path / str(seed))
        assert json.loads((folder / "summary.json").read_text())["params_sha256"] == again["params_sha256"]
        assert record.by_seed[seed]["validation/accuracy"] == again["validation_accuracy"]
    values = [metrics["validation/accuracy"] for metrics in record.by_seed.values()]
    assert len(set(values)) > 1
    assert record.metrics["validation/accuracy"] == pytest.approx(sum(values) / 3)
    mean, margin = record.metrics["validation/accuracy"], record.margins["validation/accuracy"]
    assert margin == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(values))
    assert f"validation/accuracy {mean:.4f} ± {margin:.4f}  " in trial_line(record, search.tune.objectives)
    assert f"| {mean:.4f} ± {margin:.4f} " in trial_table(search, records)

    write_results(search, records, out)
    assert f"{mean:.4f} ± {margin:.4f} (mean of 3 seeds ± 95 % confidence interval)" in (out / "best.yaml").read_text()
    assert load_config(out / "best.yaml") == search.config_at(record.point)
    (row,) = json.loads((out / "trials.json").read_text())["trials"]
    assert (row["metrics"]["validation/accuracy"], row["margins"]["validation/accuracy"]) == (mean, margin)
    assert list(row["by_seed"]) == ["5", "6", "7"]


@pytest.mark.slow
def test_an_interrupted_trial_keeps_its_finished_seeds(tiny_search, tmp_path):
    search = tiny_search(*SEEDS)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        TrialRecord(number=0, point={"noise.scale": 0.7}).save(out)
    TrialRunner(search, whole, search.base.tracking).run(Interval(0), lambda metrics: None)
    reports = []

    def stop_in_the_second_seed(metrics):
        reports.append(metrics)
        if len(reports) == 2:  # each seed reports its first epoch; the last one is reported at the trial's end
            raise SystemExit

    runner = TrialRunner(search, cut, search.base.tracking)
    with pytest.raises(SystemExit):
        runner.run(Interval(0), stop_in_the_second_seed)
    assert list(read_record(cut, 0).by_seed) == [5]
    first = (trial_folder(cut, 0) / "seed-5" / "summary.json").read_text()
    runner.run(Interval(0), lambda metrics: None)
    assert (trial_folder(cut, 0) / "seed-5" / "summary.json").read_text() == first
    assert read_record(cut, 0).updated(seconds=0.0) == read_record(whole, 0).updated(seconds=0.0)


def test_a_seed_that_fails_fails_the_trial_and_the_finished_seeds_stay(tiny_search, tmp_path, monkeypatch):
    search = tiny_search(*SEEDS)
    TrialRecord(number=0, point={"noise.scale": 0.7}).save(tmp_path)
    real, errors = TrialRunner._train, []

    def failing(self, config, *arguments):
        if config.seed == 6:
            raise errors[-1]
        return real(self, config, *arguments)

    monkeypatch.setattr(TrialRunner, "_train", failing)
    for error, status, reason in (
        (FloatingPointError("the loss is nan"), "failed", "the loss is nan"),
        (OSError(28, "No space left on device"), "lost", "No space left on device"),
        (RuntimeError("CUDA out\nof memory"), "failed", "RuntimeError: CUDA out of memory; see "),
    ):
        errors.append(error)
        TrialRunner(search, tmp_path, search.base.tracking).run(Interval(0), lambda metrics: None)
        record = read_record(tmp_path, 0)
        assert (record.status, list(record.by_seed)) == (status, [5])
        assert reason in record.reason


def test_the_mean_decides_not_one_seed():
    names = ("validation/accuracy",)
    lucky = [{"validation/accuracy": value} for value in (0.99, 0.5, 0.5)]
    steady = [{"validation/accuracy": value} for value in (0.9, 0.9, 0.9)]
    records = [
        TrialRecord(number=number, point={}, status="finished", metrics=means(by_seed), margins=margins(by_seed))
        for number, by_seed in enumerate((lucky, steady))
    ]
    assert [record.number for record in ranked(records, names)] == [1, 0]


def test_a_search_with_other_seeds_is_not_resumed(tiny_search, tmp_path):
    search, out = tiny_search(*SEEDS), tmp_path / "out"
    out.mkdir()
    (out / "tune.yaml").write_text(search.dump())
    metrics = {"validation/accuracy": 0.9, "validation/loss": 1.0}
    TrialRecord(number=0, point={"noise.scale": 0.7}, status="finished", metrics=metrics, epochs=2).save(out)
    with pytest.raises(ConfigError, match=r"does not fit the search \(it has 0 seeds, not 3\)"):
        tune(search, out, resume=True)
    with pytest.raises(ConfigError, match=r"tune.seeds: the search in .* has 3, not 2"):
        tune(tiny_search("tune.seeds=2", "seed=5", "tune.trials=1"), out, resume=True)
    assert yaml.safe_load((out / "tune.yaml").read_text())["tune"]["seeds"] == 3
