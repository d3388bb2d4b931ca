"""Population-based training: selections depend only on the seed and the metrics, and every trial can be repeated."""

from __future__ import annotations

import json
import random
import re

import pytest
from mlflow import MlflowClient

from glr_dist.config import load_config
from glr_dist.errors import ConfigError
from glr_dist.figures import draw
from glr_dist.files import write_atomically
from glr_dist.training import checkpoint
from glr_dist.training.train import train
from glr_dist.tuning import population
from glr_dist.tuning.plots import search_figure
from glr_dist.tuning.ranking import best_trial
from glr_dist.tuning.results import write_results
from glr_dist.tuning.search import tune
from glr_dist.tuning.table import trial_line, trial_table
from glr_dist.tuning.trial_queue import queue_of
from glr_dist.tuning.trial_record import read_record, read_records, trial_folder
from glr_dist.tuning.trial_runner import TrialRunner

PBT = ["tune.algorithm=pbt", "training.epochs=4", "tune.interval=2"]


def simulated(value_of):
    """Returns a function that runs an interval without training.

    `value_of(record, end)` is the accuracy that it measures, or the status of a trial that does not reach its end.
    """

    def run(runner, interval):
        record = read_record(runner.out, interval.number)
        value = value_of(record, interval.until)
        if isinstance(value, str):
            record.updated(status=value, reason="simulated").save(runner.out)
            return
        name = checkpoint.name_of(interval.until)
        write_atomically(
            trial_folder(runner.out, interval.number) / "checkpoints" / name, str(interval.number).encode()
        )
        metrics = {"validation/accuracy": value, "validation/loss": 1 - value}
        last = interval.until == runner.search.base.training.epochs
        record.updated(
            status="finished" if last else "paused",
            metrics=metrics,
            measured={**record.measured, interval.until: metrics},
            epochs=interval.until,
        ).save(runner.out)

    return run


def trained(runner, interval):
    runner.run(interval, lambda metrics: None)


def run_search(search, out, run, *, intervals=10**6, shuffled=None):
    """Runs up to `intervals` intervals of a search in this process; `shuffled` shuffles those that may start."""
    runner = TrialRunner(search, out, search.base.tracking)
    queue = queue_of(runner, read_records(out))
    while queue.done < queue.total and intervals > 0:
        startable = []
        while len(startable) < intervals and (interval := queue.ask()) is not None:
            startable.append(interval)
        if shuffled is not None:
            shuffled.shuffle(startable)
        for interval in startable:
            run(runner, interval)
            queue.tell(read_record(out, interval.number))
        intervals -= len(startable)
    return read_records(out)


def without_seconds(records):
    """Returns the records without what depends on the clock."""
    return [record.updated(seconds=0.0) for record in records]


def scale_of(record, epochs):
    """Returns the scale after some epochs, in a space of `noise.scale` alone."""
    schedule = {int(epoch): scale for epoch, scale in record.point.get("noise.schedule", {}).items()}
    begun = [epoch for epoch in sorted(schedule) if epoch <= epochs]
    return schedule[begun[-1]] if begun else record.point["noise.scale"]


def by_scale(record, end):
    return 1 - abs(scale_of(record, end - 1) - 0.2) / 10


# ---------------------------------------------------------------- selection


def test_the_worst_quarter_is_replaced_by_perturbed_copies_of_the_best_quarter(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=6", "tune.interval=2", "tune.trials=8")
    records = run_search(search, tmp_path, simulated(by_scale))
    assert len(records) == 8 + 2 * 2  # two selections
    assert records[0].point == {"noise.scale": 0.5}  # the base configuration
    first = sorted(records[:8], key=lambda record: by_scale(record, 2))
    assert {record.number for record in first[:2]} == {
        r.number for r in records if r.status == "stopped" and r.epochs == 2
    }
    for child in records[8:10]:
        parent = records[child.parent]
        assert parent in first[-2:]
        assert child.point["noise.scale"] == parent.point["noise.scale"]
        (end,) = {*child.point["noise.schedule"]} - {"4"}
        assert end == "2"
        old, new = scale_of(child, 1), scale_of(child, 2)
        assert 0.05 <= new <= 3
        assert new != old
        content = (trial_folder(tmp_path, child.number) / "checkpoints" / checkpoint.name_of(2)).read_bytes()
        assert content == str(parent.number).encode()
        assert child.measured[2] == parent.measured[2]
    assert sum(record.status == "finished" for record in records) == 8
    assert sum(record.status == "stopped" for record in records) == 4
    assert by_scale(max(records, key=lambda r: by_scale(r, 6)), 6) >= by_scale(first[-1], 6)


@pytest.mark.slow
def test_copies_are_perturbed_or_resampled_and_stay_within_the_range(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=12", "tune.trials=32")
    records = run_search(search, tmp_path, simulated(by_scale))
    children = [record for record in records if record.parent is not None]
    assert len(children) == 11 * 8
    factors = []
    for record in children:
        last = max(map(int, record.point["noise.schedule"]))
        old, new = (scale_of(record, epoch) for epoch in (last - 1, last))
        assert 0.05 <= new <= 3
        factors.append(new / old)
    near = sum(1 / 1.5 <= factor <= 1.5 for factor in factors)
    assert 0.6 * len(children) < near < 0.95 * len(children)
    assert len(set(factors)) > 0.9 * len(children)


def test_the_scale_of_each_site_is_perturbed_independently(tiny_search, tmp_path):
    space = "tune.space={noise.scale.1: {loguniform: [0.05, 3]}, noise.scale.3: {uniform: [0.1, 1]}}"
    search = tiny_search(*PBT, "tune.trials=4", space)

    def value_of(record, end):
        return search.scales(record.point, "noise.scale.3", end)[-1] / 10

    child = run_search(search, tmp_path, simulated(value_of))[-1]
    config = search.config_at(child.point)
    assert config.noise.scale == {"1": child.point["noise.scale.1"], "3": child.point["noise.scale.3"], "*": 0.5}
    then = {site: search.scales(child.point, f"noise.scale.{site}", 3)[-1] for site in "13"}
    assert config.noise.scale_after(2) == {**then, "*": 0.5}
    line = trial_line(child, ["validation/accuracy"])
    assert f"noise.schedule 2: {{1: {then['1']:.4g}, 3: {then['3']:.4g}, *: 0.5}}  " in line
    assert all(config.noise.scale[site] != config.noise.scale_after(2)[site] for site in "13")


def test_a_loss_is_minimized(tiny_search, tmp_path):
    search = tiny_search(*PBT, "tune.objectives=validation/loss")
    records = run_search(search, tmp_path, simulated(lambda record, end: record.number / 10))
    assert records[0].status == "stopped"
    assert records[4].parent == 3


def test_a_failed_trial_is_replaced_and_the_search_ends_when_all_fail(tiny_search, tmp_path):
    search = tiny_search(*PBT, "tune.trials=8")
    records = run_search(
        search, tmp_path / "some", simulated(lambda r, end: "failed" if r.number in (1, 4, 6) else r.number)
    )
    assert [record.number for record in records if record.status == "failed"] == [1, 4, 6]
    assert [record.number for record in records if record.status == "stopped"] == []  # more than a quarter failed
    assert {record.parent for record in records[8:]} <= {5, 7}
    assert sum(record.status == "finished" for record in records) == 8
    files = write_results(search, records, tmp_path / "some")  # three of them have no epochs to plot
    assert all(file.exists() for file in files)
    assert trial_table(search, records).count("failed: simulated") == 3

    records = run_search(search, tmp_path / "all", simulated(lambda record, end: "failed"))
    assert [record.status for record in records] == ["failed"] * 8
    records = run_search(search, tmp_path / "all", simulated(by_scale))  # resumed, and the cause is gone
    assert sum(record.status == "finished" for record in records) == 8


@pytest.mark.slow
def test_the_population_waits_for_a_trial_that_was_lost_with_its_machine(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=4", "tune.trials=4")
    expected = run_search(search, tmp_path / "whole", simulated(by_scale))
    last = next(record.number for record in expected if record.status == "finished")
    for number, end in ((2, 1), (4, 2), (last, 4)):
        out = tmp_path / f"{number}-{end}"
        losing = simulated(lambda r, e, lost=(number, end): "lost" if (r.number, e) == lost else by_scale(r, e))
        records = run_search(search, out, losing)
        assert records[number].status == "lost"
        if end < 4:
            with pytest.raises(ConfigError, match=f"no trial finished; trial {number}: simulated"):
                write_results(search, records, out)
        assert run_search(search, out, simulated(by_scale)) == expected


# ---------------------------------------------------------------- determinism


@pytest.mark.slow
def test_the_order_of_the_intervals_changes_nothing_but_the_seed_does(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=6", "tune.trials=8")
    expected = run_search(search, tmp_path / "in order", simulated(by_scale))
    for seed in (1, 2):
        found = run_search(search, tmp_path / str(seed), simulated(by_scale), shuffled=random.Random(seed))
        assert found == expected
    other = tiny_search("tune.algorithm=pbt", "training.epochs=6", "tune.trials=8", "tune.seed=1")
    assert run_search(other, tmp_path / "other", simulated(by_scale))[1:8] != expected[1:8]


@pytest.mark.slow
def test_a_search_interrupted_after_any_interval_continues_as_if_it_had_not_been(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=4", "tune.trials=4")

    def value_of(record, end):
        return "failed" if (record.number, end) == (2, 2) else by_scale(record, end)

    expected = run_search(search, tmp_path / "whole", simulated(value_of))
    for intervals in range(1, 16):
        out = tmp_path / str(intervals)
        run_search(search, out, simulated(value_of), intervals=intervals)
        assert run_search(search, out, simulated(value_of)) == expected


@pytest.mark.slow
def test_a_crash_at_any_write_of_a_selection_loses_nothing(tiny_search, tmp_path, monkeypatch):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=3", "tune.trials=8")
    expected = run_search(search, tmp_path / "whole", simulated(by_scale))

    class CrashError(BaseException):
        """Stands for the end of the process."""

    for write in range(1, 9):  # two copied checkpoints, two configurations, two stopped and two new records
        out, written = tmp_path / str(write), 0

        def failing(*arguments, real, limit=write):
            nonlocal written
            written += 1
            if written == limit:
                raise CrashError
            real(*arguments)

        run_search(search, out, simulated(by_scale), intervals=8)
        with monkeypatch.context() as patched:
            copy, save = population.write_atomically, population.Population._save
            patched.setattr(population, "write_atomically", lambda *a, real=copy: failing(*a, real=real))
            patched.setattr(population.Population, "_save", lambda *a, real=save: failing(*a, real=real))
            with pytest.raises(CrashError):
                run_search(search, out, simulated(by_scale), intervals=1)
        assert run_search(search, out, simulated(by_scale)) == expected


# ---------------------------------------------------------------- real trials


@pytest.mark.slow
def test_a_trial_can_be_repeated_from_its_configuration(tiny_search, tmp_path):
    search = tiny_search(*PBT)
    records = run_search(search, tmp_path / "out", trained)
    children = [record for record in records if record.parent is not None]
    assert len(children) == 1
    for record in (children[0], next(record for record in records if record.status == "finished")):
        folder = trial_folder(tmp_path / "out", record.number)
        again = train(search.config_at(record.point), tmp_path / str(record.number))
        kept = json.loads((folder / "summary.json").read_text())
        assert again["params_sha256"] == kept["params_sha256"]
        assert (
            again["validation_accuracy"]
            == record.metrics["validation/accuracy"]
            == record.measured[4]["validation/accuracy"]
        )
        epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]  # those before its start are its parent's
        assert epochs[3]["noise_scale/1"] == pytest.approx(scale_of(record, 3))
    stopped = next(record for record in records if record.status == "stopped")
    assert stopped.epochs == 2
    assert not (trial_folder(tmp_path / "out", stopped.number) / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_picture_of_a_population_is_a_png(tiny_search, tmp_path):
    search = tiny_search(*PBT)
    records = run_search(search, tmp_path / "out", simulated(by_scale))
    assert draw(tmp_path / "search.png", lambda: search_figure(search, records))
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("pictures")
@pytest.mark.ray
@pytest.mark.long
def test_on_ray_the_population_is_the_same_and_nested_in_mlflow(local_ray, tiny_search, tmp_path, capsys):
    robust = [
        "tune.objectives=[robust/control/random_sign/eps_0.1/accuracy, validation/accuracy]",
        "tune.robustness={examples: 50, attacks: [{name: random_sign}]}",
    ]
    expected = run_search(tiny_search(*PBT, *robust), tmp_path / "here", trained)
    uri, out = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "out"
    search = tiny_search(*PBT, *robust, "tune.concurrent=2", f"tracking={{kind: mlflow, uri: '{uri}'}}")
    printed = tune(search, out)
    records = read_records(out)
    assert without_seconds(records) == without_seconds(expected)
    assert "noise.schedule" in printed
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"finished  \(8 of 8; best 0\.\d{4}, trial \d\)$", lines[-1])
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    best = best_trial(records, search.tune.objectives)
    assert load_config(out / "best.yaml") == search.config_at(best.point)
    assert tune(search, out, resume=True) == printed  # nothing is left to run

    client = MlflowClient(uri)
    runs = {
        r.info.run_name.split(":")[0]: r
        for r in client.search_runs([client.get_experiment_by_name("glr_dist").experiment_id])
    }
    parent = runs.pop("out")
    assert runs.keys() == {str(record.number) for record in records}
    for record in records:
        run = runs[str(record.number)]
        assert run.info.run_name.startswith(f"{record.number}: noise.scale={record.point['noise.scale']:.4g}")
        assert len(run.info.run_name) <= 120
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.tags.get("parent_trial") == (None if record.parent is None else str(record.parent))
        assert run.data.tags["stopped_early"] == str(record.status == "stopped").lower()
        scales = client.get_metric_history(run.info.run_id, "noise_scale/1")
        assert [point.step for point in scales] == list(range(1, record.epochs + 1))
        assert scales[-1].value == pytest.approx(scale_of(record, record.epochs - 1))
