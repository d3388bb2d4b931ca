"""Files and progress of a search, without training."""

from __future__ import annotations

import json

import pytest

from glr_dist.config import load_config
from glr_dist.tuning import results
from glr_dist.tuning.progress import SearchProgress
from glr_dist.tuning.results import write_results
from glr_dist.tuning.search import tune
from glr_dist.tuning.trial_queue import queue_of
from glr_dist.tuning.trial_record import TrialRecord
from glr_dist.tuning.trial_runner import TrialRunner


def finished(number, accuracy, **values):
    metrics = {"validation/accuracy": accuracy, "validation/loss": 1 - accuracy}
    point = {"noise.scale": 0.5 + number / 10}
    return TrialRecord(number=number, point=point, status="finished", metrics=metrics, epochs=2).updated(**values)


@pytest.mark.parametrize(
    "error", [RuntimeError("no\nfonts"), ImportError("no matplotlib"), OSError(28, "No space left")]
)
def test_a_plot_that_fails_is_a_warning_after_the_results(tiny_search, tmp_path, monkeypatch, capsys, error):
    def fail(*_: object) -> None:
        written = {file.name for file in tmp_path.iterdir()}
        assert written >= {"trials.json", "best.yaml", "pareto.yaml"}
        raise error

    monkeypatch.setattr(results, "search_figure", fail)
    search = tiny_search("tune.objectives=[validation/accuracy, validation/loss]")
    records = [finished(number, 0.5 + number / 10) for number in range(4)]
    files = write_results(search, records, tmp_path)
    assert [file.name for file in files] == ["trials.json", "best.yaml", "pareto.yaml"]
    assert load_config(tmp_path / "best.yaml") == search.config_at(records[3].point)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'search.png'}: cannot be drawn (")


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_backend_of_a_notebook_is_not_asked_for(tiny_search, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline_that_is_missing")
    files = write_results(tiny_search(), [finished(number, 0.5) for number in range(4)], tmp_path)
    assert [file.name for file in files[-2:]] == ["search.png", "search.pdf"]
    assert [file.read_bytes()[:4] for file in files[-2:]] == [b"\x89PNG", b"%PDF"]


def test_results_are_written_before_the_tracking_server_is_told(tiny_search, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for number in range(4):
        finished(number, 0.5).save(out)
    (out / "tune.yaml").write_text(tiny_search().dump())

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("glr_dist.tuning.search.sync_children", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(tiny_search(), out, resume=True)
    assert (out / "best.yaml").exists()
    assert len(json.loads((out / "trials.json").read_text())["trials"]) == 4


def test_progress_shows_the_best_trial_so_far(tiny_search, tmp_path, capsys):
    def lines(name, records, before=()):
        search = tiny_search(f"tune.objectives={name}", "tune.trials=5")
        runner = TrialRunner(search, tmp_path, search.base.tracking)
        with SearchProgress(runner, queue_of(runner, []), before) as progress:
            for record in records:
                progress.show(record)
        return [line.partition("(0 of 5")[2] for line in capsys.readouterr().out.splitlines()]

    records = [
        finished(0, 0.3, status="failed", metrics={}),
        finished(1, 0.5),
        finished(2, 0.9, status="stopped"),
        finished(3, 0.4),
        finished(4, 0.7),
    ]
    best = ["", "; best 0.5000, trial 1", "; best 0.5000, trial 1", "; best 0.5000, trial 1", "; best 0.7000, trial 4"]
    assert lines("validation/accuracy", records) == [f"{text})" for text in best]
    losses = ["; best 0.5000, trial 1", "; best 0.5000, trial 1", "; best 0.3000, trial 4"]
    assert lines("validation/loss", [records[1], records[3], records[4]]) == [f"{text})" for text in losses]
    assert lines("validation/accuracy", [finished(4, 0.1)], [finished(0, 0.8)]) == ["; best 0.8000, trial 0)"]
