"""Populations: who gives way to whom, decided by seed and outcomes alone, and that all can be trained again."""

from __future__ import annotations

import json
import random

import pytest
from mlflow import MlflowClient

from glr_dist import config
from glr_dist.errors import ConfigError
from glr_dist.files import write_atomically
from glr_dist.training import checkpoint
from glr_dist.training.train import train
from glr_dist.tuning import population, report
from glr_dist.tuning.agenda import agenda_of
from glr_dist.tuning.record import folder_of, read, read_all
from glr_dist.tuning.search import tune
from glr_dist.tuning.trial import Trial

PBT = ["tune.algorithm=pbt", "training.epochs=4", "tune.interval=2"]


def imagined(value_of):
    """A turn that trains nothing: `value_of(record, end)` is what it measures, or the status of one that does not."""

    def run(trial, turn):
        record = read(trial.out, turn.number)
        value = value_of(record, turn.until)
        if isinstance(value, str):
            record.changed(status=value, reason="imagined").keep(trial.out)
            return
        name = checkpoint.name_of(turn.until)
        write_atomically(folder_of(trial.out, turn.number) / "checkpoints" / name, str(turn.number).encode())
        metrics = {"validation/accuracy": value, "validation/loss": 1 - value}
        last = turn.until == trial.search.base.training.epochs
        record.changed(
            status="finished" if last else "paused",
            metrics=metrics,
            measured={**record.measured, turn.until: metrics},
            epochs=turn.until,
        ).keep(trial.out)

    return run


def real(trial, turn):
    trial.run(turn, lambda figures: None)


def carried_out(search, out, run, *, turns=10**6, shuffled=None):
    """A search, or so many turns of it, in this process; `shuffled` orders the turns that may begin."""
    trial = Trial(search, out, search.base.tracking)
    agenda = agenda_of(trial, read_all(out))
    while agenda.done < agenda.total and turns > 0:
        ready = []
        while len(ready) < turns and (turn := agenda.next()) is not None:
            ready.append(turn)
        if shuffled is not None:
            shuffled.shuffle(ready)
        for turn in ready:
            run(trial, turn)
            agenda.tell(read(out, turn.number))
        turns -= len(ready)
    return read_all(out)


def lasting(records):
    """What does not depend on the clock."""
    return [record.changed(seconds=0.0) for record in records]


def scale_of(record, epochs):
    """Where the space has nothing but `noise.scale`."""
    schedule = {int(epoch): scale for epoch, scale in record.point.get("noise.schedule", {}).items()}
    begun = [epoch for epoch in sorted(schedule) if epoch <= epochs]
    return schedule[begun[-1]] if begun else record.point["noise.scale"]


def by_scale(record, end):
    return 1 - abs(scale_of(record, end - 1) - 0.2) / 10


# ---------------------------------------------------------------- who gives way to whom


def test_a_quarter_gives_way_to_changed_copies_of_the_best_quarter(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=6", "tune.interval=2", "tune.trials=8")
    records = carried_out(search, tmp_path, imagined(by_scale))
    assert len(records) == 8 + 2 * 2  # two selections
    assert records[0].point == {"noise.scale": 0.5}  # the configuration as it is
    first = sorted(records[:8], key=lambda record: by_scale(record, 2))
    assert {record.number for record in first[:2]} == {
        r.number for r in records if r.status == "stopped" and r.epochs == 2
    }
    for born in records[8:10]:
        donor = records[born.donor]
        assert donor in first[-2:]
        assert born.point["noise.scale"] == donor.point["noise.scale"]
        (end,) = {*born.point["noise.schedule"]} - {"4"}
        assert end == "2"
        old, new = scale_of(born, 1), scale_of(born, 2)
        assert 0.05 <= new <= 3
        assert new != old
        content = (folder_of(tmp_path, born.number) / "checkpoints" / checkpoint.name_of(2)).read_bytes()
        assert content == str(donor.number).encode()
        assert born.measured[2] == donor.measured[2]
    assert sum(record.status == "finished" for record in records) == 8
    assert sum(record.status == "stopped" for record in records) == 4
    assert by_scale(max(records, key=lambda r: by_scale(r, 6)), 6) >= by_scale(first[-1], 6)


def test_copies_are_changed_a_little_or_drawn_anew_and_stay_within_the_range(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=12", "tune.trials=32")
    records = carried_out(search, tmp_path, imagined(by_scale))
    born = [record for record in records if record.donor is not None]
    assert len(born) == 11 * 8
    factors = []
    for record in born:
        last = max(map(int, record.point["noise.schedule"]))
        old, new = (scale_of(record, epoch) for epoch in (last - 1, last))
        assert 0.05 <= new <= 3
        factors.append(new / old)
    near = sum(1 / 1.5 <= factor <= 1.5 for factor in factors)
    assert 0.6 * len(born) < near < 0.95 * len(born)
    assert len(set(factors)) > 0.9 * len(born)


def test_the_scales_of_sites_move_each_on_its_own(tiny_search, tmp_path):
    space = "tune.space={noise.scale.1: {loguniform: [0.05, 3]}, noise.scale.3: {uniform: [0.1, 1]}}"
    search = tiny_search(*PBT, "tune.trials=4", space)

    def value_of(record, end):
        return search.scales(record.point, "noise.scale.3", end)[-1] / 10

    born = carried_out(search, tmp_path, imagined(value_of))[-1]
    settings = search.settings(born.point)
    assert settings.noise.scale == {"1": born.point["noise.scale.1"], "3": born.point["noise.scale.3"], "*": 0.5}
    then = {site: search.scales(born.point, f"noise.scale.{site}", 3)[-1] for site in "13"}
    assert settings.noise.scale_after(2) == {**then, "*": 0.5}
    said = report.described(born, ["validation/accuracy"])
    assert f"noise.schedule 2: {{1: {then['1']:.4g}, 3: {then['3']:.4g}, *: 0.5}}  " in said
    assert all(settings.noise.scale[site] != settings.noise.scale_after(2)[site] for site in "13")


def test_less_is_better_where_it_is(tiny_search, tmp_path):
    search = tiny_search(*PBT, "tune.objectives=validation/loss")
    records = carried_out(search, tmp_path, imagined(lambda record, end: record.number / 10))
    assert records[0].status == "stopped"
    assert records[4].donor == 3


def test_one_that_fails_is_replaced_and_when_all_fail_the_search_ends(tiny_search, tmp_path):
    search = tiny_search(*PBT, "tune.trials=8")
    records = carried_out(
        search, tmp_path / "some", imagined(lambda r, end: "failed" if r.number in (1, 4, 6) else r.number)
    )
    assert [record.number for record in records if record.status == "failed"] == [1, 4, 6]
    assert [record.number for record in records if record.status == "stopped"] == []  # more than a quarter failed
    assert {record.donor for record in records[8:]} <= {5, 7}
    assert sum(record.status == "finished" for record in records) == 8
    files = report.write(search, records, tmp_path / "some")  # three of them have no epoch to draw
    assert all(file.exists() for file in files)
    assert report.table(search, records).count("failed: imagined") == 3

    records = carried_out(search, tmp_path / "all", imagined(lambda record, end: "failed"))
    assert [record.status for record in records] == ["failed"] * 8
    records = carried_out(search, tmp_path / "all", imagined(by_scale))  # resumed: the reason is gone
    assert sum(record.status == "finished" for record in records) == 8


def test_one_that_is_lost_to_its_machine_is_waited_for(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=4", "tune.trials=4")
    expected = carried_out(search, tmp_path / "whole", imagined(by_scale))
    last = next(record.number for record in expected if record.status == "finished")
    for number, end in ((2, 1), (4, 2), (last, 4)):
        out = tmp_path / f"{number}-{end}"
        losing = imagined(lambda r, e, lost=(number, end): "lost" if (r.number, e) == lost else by_scale(r, e))
        records = carried_out(search, out, losing)  # comes to an end
        assert records[number].status == "lost"
        if end < 4:
            with pytest.raises(ConfigError, match=f"no trial could be finished; trial {number}: imagined"):
                report.write(search, records, out)
        assert carried_out(search, out, imagined(by_scale)) == expected


# ---------------------------------------------------------------- the same, however it came about


def test_the_order_of_the_turns_changes_nothing_and_the_seed_all(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=6", "tune.trials=8")
    expected = carried_out(search, tmp_path / "in order", imagined(by_scale))
    for seed in (1, 2):
        found = carried_out(search, tmp_path / str(seed), imagined(by_scale), shuffled=random.Random(seed))
        assert found == expected
    other = tiny_search("tune.algorithm=pbt", "training.epochs=6", "tune.trials=8", "tune.seed=1")
    assert carried_out(other, tmp_path / "other", imagined(by_scale))[1:8] != expected[1:8]


def test_a_search_that_is_cut_after_any_turn_goes_on_as_if_it_had_not_been(tiny_search, tmp_path):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=4", "tune.trials=4")

    def value_of(record, end):
        return "failed" if (record.number, end) == (2, 2) else by_scale(record, end)

    expected = carried_out(search, tmp_path / "whole", imagined(value_of))
    for turns in range(1, 16):
        out = tmp_path / str(turns)
        carried_out(search, out, imagined(value_of), turns=turns)
        assert carried_out(search, out, imagined(value_of)) == expected


def test_a_crash_at_any_write_of_a_selection_loses_nothing(tiny_search, tmp_path, monkeypatch):
    search = tiny_search("tune.algorithm=pbt", "training.epochs=3", "tune.trials=8")
    expected = carried_out(search, tmp_path / "whole", imagined(by_scale))

    class CrashError(BaseException):
        """The end of the process."""

    for write in range(1, 9):  # two copies of two files, two that end, two that are born
        out, written = tmp_path / str(write), 0

        def failing(*arguments, real, limit=write):
            nonlocal written
            written += 1
            if written == limit:
                raise CrashError
            real(*arguments)

        carried_out(search, out, imagined(by_scale), turns=8)
        with monkeypatch.context() as patched:
            copy, keep = population.write_atomically, population.Population._keep
            patched.setattr(population, "write_atomically", lambda *a, real=copy: failing(*a, real=real))
            patched.setattr(population.Population, "_keep", lambda *a, real=keep: failing(*a, real=real))
            with pytest.raises(CrashError):
                carried_out(search, out, imagined(by_scale), turns=1)
        assert carried_out(search, out, imagined(by_scale)) == expected


# ---------------------------------------------------------------- real trials


def test_what_a_trial_has_become_is_its_configuration_and_can_be_trained_again(tiny_search, tmp_path):
    search = tiny_search(*PBT)
    records = carried_out(search, tmp_path / "out", real)
    born = [record for record in records if record.donor is not None]
    assert len(born) == 1
    for record in (born[0], next(record for record in records if record.status == "finished")):
        folder = folder_of(tmp_path / "out", record.number)
        again = train(search.settings(record.point), tmp_path / str(record.number))
        kept = json.loads((folder / "summary.json").read_text())
        assert again["params_sha256"] == kept["params_sha256"]
        assert (
            again["validation_accuracy"]
            == record.metrics["validation/accuracy"]
            == record.measured[4]["validation/accuracy"]
        )
        told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in told] == [1, 2, 3, 4]  # those before its birth are the donor's
        assert told[3]["noise_scale/1"] == pytest.approx(scale_of(record, 3))
    stopped = next(record for record in records if record.status == "stopped")
    assert stopped.epochs == 2
    assert not (folder_of(tmp_path / "out", stopped.number) / "summary.json").exists()


@pytest.mark.ray
def test_on_ray_it_is_the_same_population_nested_in_mlflow(local_ray, tiny_search, tmp_path, capsys):
    robust = [
        "tune.objectives=[robust/control/random_sign/eps_0.1/accuracy, validation/accuracy]",
        "tune.robustness={examples: 50, attacks: [{name: random_sign}]}",
    ]
    expected = carried_out(tiny_search(*PBT, *robust), tmp_path / "here", real)
    uri, out = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "out"
    search = tiny_search(*PBT, *robust, "tune.concurrent=2", f"tracking={{kind: mlflow, uri: '{uri}'}}")
    printed = tune(search, out)
    records = read_all(out)
    assert lasting(records) == lasting(expected)
    assert "noise.schedule" in printed
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("finished  (8 of 8)")
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    best = report.best(search, records)
    assert config.load_config(out / "best.yaml") == search.settings(best.point)
    assert tune(search, out, resume=True) == printed  # nothing is left to do

    client = MlflowClient(uri)
    runs = {r.info.run_name: r for r in client.search_runs([client.get_experiment_by_name("glr_dist").experiment_id])}
    parent = runs.pop("out")
    assert runs.keys() == {str(record.number) for record in records}
    for record in records:
        run = runs[str(record.number)]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.tags.get("donor") == (None if record.donor is None else str(record.donor))
        assert run.data.tags["stopped_early"] == str(record.status == "stopped").lower()
        scales = client.get_metric_history(run.info.run_id, "noise_scale/1")
        assert [point.step for point in scales] == list(range(1, record.epochs + 1))
        assert scales[-1].value == pytest.approx(scale_of(record, record.epochs - 1))
