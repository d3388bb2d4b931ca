"""The best checkpoint: kept through pruning, crashes and resumption, and loaded by name."""

from __future__ import annotations

import itertools
import json
import signal
import time
from pathlib import Path

import pytest
from crashes import Crash, crash_at

from glr_dist import cli
from glr_dist.errors import CheckpointError, ConfigError
from glr_dist.losses import LOSSES
from glr_dist.robustness.compare import compare
from glr_dist.robustness.report_files import read_report
from glr_dist.training import checkpoint
from glr_dist.training import trainer as trainer_module
from glr_dist.training.best import best_record
from glr_dist.training.scores import scores
from glr_dist.training.train import train
from glr_dist.training.trained_run import load_run
from glr_dist.training.trainer import Trainer

# A learning rate so large that the accuracy goes up and down: the best epoch is neither the first nor one of the last.
UNSTEADY = ("training.epochs=8", "training.optimizer.lr=0.3", "estimator.copies=2")
QUICK = ("examples=40", "attacks=[]", "corruptions.names=[]")


def checkpoints(out: Path) -> list[int]:
    return [int(path.stem[6:]) for path in reversed(checkpoint.listed(out / "checkpoints"))]


def accuracies(out: Path) -> list[float]:
    return [json.loads(line)["validation_accuracy"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unsteady(tiny, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, train(tiny(*UNSTEADY), out)


@pytest.fixture
def planted(monkeypatch):
    """`planted([0.1, …])`: gives the epochs these validation accuracies, and the test set 0."""

    def plant(values: list[float]) -> None:
        left = iter(values)
        monkeypatch.setattr(trainer_module, "scores", lambda *_: {"accuracy": next(left, 0.0), "loss": 1.0})

    return plant


def test_the_best_checkpoint_is_kept_besides_the_newest(unsteady):
    out, summary = unsteady
    best = 1 + max(range(8), key=lambda epoch: (accuracies(out)[epoch], -epoch))
    assert 1 < best < 7
    assert checkpoints(out) == [best, 7, 8]
    assert summary["best_epoch"] == best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planned", "best", "kept"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.2], 2, [2, 4, 5]),  # of equal ones, the earlier
        ([0.5, 0.4, 0.3, 0.2, 0.1], 1, [1, 4, 5]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 5, [4, 5]),
        ([0.2, 0.2, 0.2, 0.2, 0.2], 1, [1, 4, 5]),
        ([0.3, 0.2, 0.4, 0.1, 0.5], 5, [4, 5]),
    ],
)
def test_a_better_epoch_replaces_the_best_one_and_an_equal_one_does_not(tiny, tmp_path, planted, planned, best, kept):
    planted(planned)
    summary = train(tiny("training.epochs=5", "estimator.copies=2"), tmp_path / "run")
    assert summary["best_epoch"] == best
    assert checkpoints(tmp_path / "run") == kept


@pytest.mark.slow
def test_the_test_set_does_not_choose(tiny, tmp_path, monkeypatch):
    # A test set on which every network is perfect changes nothing.
    trainer, perfect = Trainer(tiny(*UNSTEADY), tmp_path / "run"), {"accuracy": 1.0, "loss": 0.0}
    monkeypatch.setattr(
        trainer_module,
        "scores",
        lambda net, split, *rest: perfect if split is trainer.test else scores(net, split, *rest),
    )
    best = trainer.run()["best_epoch"]
    assert best == best_record(trainer.history)["epoch"] < 8


def test_the_best_checkpoint_is_loaded_by_name(unsteady):
    out, summary = unsteady
    best, newest = load_run(out, checkpoint="best"), load_run(out)
    assert (best.epoch, newest.epoch) == (summary["best_epoch"], 8)
    assert checkpoint.digest(newest.net.state_dict()) == summary["params_sha256"]
    assert checkpoint.digest(best.net.state_dict()) == summary["best_params_sha256"] != summary["params_sha256"]
    accuracy = scores(best.net, best.data.validation, LOSSES["cross_entropy"])["accuracy"]
    assert accuracy == max(accuracies(out)) == best.metrics[-1]["validation_accuracy"]
    with pytest.raises(ConfigError, match="checkpoint: 'bets' is not allowed: 'newest' or 'best'"):
        load_run(out, checkpoint="bets")


@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_or_damaged_is_named(tiny, tmp_path):
    out = tmp_path / "run"
    path = out / "checkpoints" / checkpoint.name_of(train(tiny(*UNSTEADY), out)["best_epoch"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{path.name}: is not a whole"):
        load_run(out, checkpoint="best")
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{path.name}: is missing: the checkpoint of the best epoch"):
        load_run(out, checkpoint="best")
    assert load_run(out).epoch == 8
    # A run of an earlier version, which did not keep it, ends without its digest.
    assert "best_params_sha256" not in train(tiny(*UNSTEADY), out, resume=True)


@pytest.mark.slow
def test_a_stray_file_of_a_later_epoch_does_not_hide_the_best(unsteady, tiny, tmp_path):
    trainer = Trainer(tiny(*UNSTEADY), tmp_path / "run")
    trainer.folder.checkpoints.mkdir()
    (trainer.folder.checkpoints / "epoch-99999.pt").write_bytes(b"")
    assert trainer.run()["best_params_sha256"] == unsteady[1]["best_params_sha256"]


@pytest.mark.slow
def test_each_checkpoint_has_a_report_of_its_own(tiny, tmp_path, capsys):
    out = tmp_path / "run"
    summary = train(tiny(*UNSTEADY), out)
    for options in ([], ["--checkpoint", "best"]):
        assert cli.main(["evaluate", str(out), "--suite", "quick", *QUICK, *options]) == 0
    said = capsys.readouterr().out
    assert f"after epoch {summary['best_epoch']}, the best on validation images;" in said
    assert f"results  {out}/robustness/quick-test.best.md" in said
    newest, best = read_report(out, "quick-test"), read_report(out, "quick-test.best")
    assert (newest.epoch, best.epoch) == (8, summary["best_epoch"])
    assert best.params_sha256 == summary["best_params_sha256"]
    # Writing one report again leaves the pictures of the other in place.
    before = sorted((out / "robustness").iterdir())
    assert cli.main(["evaluate", str(out), "--suite", "quick", *QUICK]) == 0
    assert sorted((out / "robustness").iterdir()) == before
    assert "| clean" in compare([out, out], tmp_path / "best", suite="quick-test.best")
    forged = json.loads((out / "robustness" / "quick-test.best.json").read_text()) | {"params_sha256": "0" * 64}
    (out / "robustness" / "quick-test.best.json").write_text(json.dumps(forged))
    with pytest.raises(ConfigError, match="belongs to another network"):
        compare([out, out], tmp_path / "forged", suite="quick-test.best")


# ---------------------------------------------------------------- interrupted


@pytest.mark.slow
def test_a_crash_at_any_write_or_deletion_keeps_the_best_checkpoint(unsteady, tiny, tmp_path):
    settings, whole, kept = tiny(*UNSTEADY), unsteady[1], checkpoints(unsteady[0])
    for number in itertools.count(0, 11):  # another kind of place in each epoch
        out = tmp_path / f"crash {number}"
        try:
            with crash_at(number, deletions=True):
                train(settings, out)
            break
        except Crash:
            pass
        if (out / "config.yaml").exists():
            if checkpoint.listed(out / "checkpoints"):
                load_run(out, checkpoint="best")  # at any time
            again = train(settings, out, resume=True)
            assert (again["best_epoch"], again["params_sha256"]) == (whole["best_epoch"], whole["params_sha256"])
            assert checkpoints(out) == kept
            assert again["best_params_sha256"] == whole["best_params_sha256"]
    assert number >= 33


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_that_was_the_best_is_made_again(tiny, tmp_path, planted):
    out, settings = tmp_path / "run", tiny("training.epochs=4", "estimator.copies=2")
    planted([0.4, 0.1, 0.2, 0.9])
    whole = train(settings, out)
    assert checkpoints(out) == [3, 4]
    (out / "checkpoints" / checkpoint.name_of(4)).write_bytes(b"")
    planted([0.9])
    again = train(settings, out, resume=True)
    assert (again["best_epoch"], again["best_params_sha256"]) == (4, whole["best_params_sha256"])


@pytest.mark.long
def test_a_killed_run_keeps_its_best_checkpoint(start, tiny, tiny_yaml, tmp_path):
    out, settings = tmp_path / "run", (*UNSTEADY, "training.epochs=12")
    process = start("train", tiny_yaml, *settings, "--out", out)
    while process.poll() is None and len(checkpoint.listed(out / "checkpoints")) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = load_run(out).epoch
    assert load_run(out, checkpoint="best").epoch == 1 + max(
        range(done), key=lambda epoch: (accuracies(out)[epoch], -epoch)
    )
    summary = train(tiny(*settings), out, resume=True)
    assert summary["params_sha256"] == train(tiny(*settings), tmp_path / "whole")["params_sha256"]
    assert load_run(out, checkpoint="best").epoch == summary["best_epoch"]
