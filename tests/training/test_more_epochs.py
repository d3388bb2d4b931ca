"""A run that is resumed with more epochs is the run that had them from the beginning."""

from __future__ import annotations

import itertools
import json
import shutil
import time

import pytest
from crashes import Crash, crash_at
from test_trainer import lasting, metrics, stopped_at

from glr_dist import cli
from glr_dist.errors import ConfigError
from glr_dist.robustness.compare import compare
from glr_dist.robustness.evaluate import evaluate
from glr_dist.robustness.suite import load_suite
from glr_dist.runs import RunFolder
from glr_dist.training.train import train
from glr_dist.training.trainer import Trainer

SHORT = ("estimator.copies=2", "training.epochs=2")

# Schedules whose course does not depend on the number of epochs; the first cases hold two features each.
ALLOWED_TOGETHER = {
    "steps, noise, dropout": [
        "training.schedule={name: StepLR, step_size: 2, gamma: 0.5}",
        "noise.schedule={1: 0.4}",
        "noise.scale=0.8",
        "model.dropout=0.2",
    ],
    "exponential, learned noise": [
        "training.schedule={name: ExponentialLR, gamma: 0.9, per: step}",
        "noise.learn=unit",
    ],
}
ALLOWED = {
    "none": [],
    "steps": ["training.schedule={name: StepLR, step_size: 2, gamma: 0.5}"],
    "exponential": ["training.schedule={name: ExponentialLR, gamma: 0.9, per: step}"],
    "plateau": ["training.schedule={name: ReduceLROnPlateau, patience: 0, threshold: 0.9}"],
    "cosine of a given length": ["training.schedule={name: CosineAnnealingLR, T_max: 3}"],
    "restarts": ["training.schedule={name: CosineAnnealingWarmRestarts, T_0: 2}"],
    "noise": ["noise.schedule={1: 0.4}", "noise.scale=0.8"],
    "learned noise": ["noise.learn=unit"],
    "dropout": ["model.dropout=0.2"],
}

# Schedules that take the length of the run where none is given.
REFUSED = {
    "CosineAnnealingLR": "{name: CosineAnnealingLR}",
    "OneCycleLR": "{name: OneCycleLR, max_lr: 0.1, per: step}",
    "LinearLR": "{name: LinearLR}",
    "PolynomialLR": "{name: PolynomialLR, power: 2.0}",
    "ConstantLR": "{name: ConstantLR}",
}


TOGETHER = ("none", "steps", "exponential", "noise", "learned noise", "dropout")  # long alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        *(pytest.param(overrides, id=name) for name, overrides in ALLOWED_TOGETHER.items()),
        *(
            pytest.param(overrides, id=name, marks=pytest.mark.long if name in TOGETHER else [])
            for name, overrides in ALLOWED.items()
        ),
    ],
)
def test_more_epochs_give_the_run_that_had_them_from_the_beginning(tiny, tmp_path, overrides):
    out, more = tmp_path / "run", tiny(*SHORT, *overrides, "training.epochs=5")
    first = train(tiny(*SHORT, *overrides), out)
    again = train(more, out, resume=True)
    whole = train(more, tmp_path / "whole")
    assert again["params_sha256"] == whole["params_sha256"] != first["params_sha256"]
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert lasting(metrics(out)) == lasting(metrics(tmp_path / "whole"))
    assert RunFolder(out).config() == more


@pytest.mark.slow
@pytest.mark.parametrize(("name", "schedule"), REFUSED.items(), ids=REFUSED)
def test_a_schedule_that_depends_on_the_number_of_epochs_is_refused(tiny, tmp_path, name, schedule):
    out, overrides = tmp_path / "run", (*SHORT, f"training.schedule={schedule}")
    first = train(tiny(*overrides), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=rf"has 2 epochs, not 5.* {name} .*model\.weights={out}") as caught:
        Trainer(tiny(*overrides, "training.epochs=5"), out, resume=True)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert train(tiny(*overrides), out, resume=True) == first  # which continues as before


@pytest.mark.slow
def test_fewer_epochs_than_trained_are_refused_and_fewer_than_configured_are_not(tiny, tmp_path):
    out = tmp_path / "run"
    stopped_at(Trainer(tiny(*SHORT, "training.epochs=9"), out), step=10)  # in the fourth epoch
    with pytest.raises(ConfigError, match=r"training\.epochs: 2 is not allowed: .* already trained 3 epochs") as caught:
        Trainer(tiny(*SHORT), out, resume=True)
    assert "\n" not in str(caught.value)
    assert RunFolder(out).config().training.epochs == 9
    whole = train(tiny(*SHORT, "training.epochs=4"), tmp_path / "whole")
    assert train(tiny(*SHORT, "training.epochs=4"), out, resume=True)["params_sha256"] == whole["params_sha256"]
    ended = train(tiny(*SHORT, "training.epochs=3"), tmp_path / "three")
    stopped_at(Trainer(tiny(*SHORT, "training.epochs=9"), tmp_path / "early"), step=10)
    early = train(tiny(*SHORT, "training.epochs=3"), tmp_path / "early", resume=True)
    assert {**early, "seconds": 0} == {**ended, "seconds": 0}


@pytest.mark.slow
def test_another_setting_stays_refused_beside_more_epochs(tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny(*SHORT), out)
    with pytest.raises(ConfigError, match=r"^seed: the run in .* has 0, not 1; leave out --resume"):
        Trainer(tiny(*SHORT, "training.epochs=5", "seed=1"), out, resume=True)
    assert RunFolder(out).config().training.epochs == 2
    assert RunFolder(out).summary()["epochs"] == 2


@pytest.mark.slow
def test_only_the_number_of_epochs_changes_in_the_configuration(tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny(*SHORT), out)
    train(tiny(*SHORT, "training.epochs=3", "execution.threads=1", "diagnose.draws=3"), out, resume=True)
    assert RunFolder(out).config() == tiny(*SHORT, "training.epochs=3")


@pytest.mark.long
def test_a_crash_at_any_write_leaves_a_folder_that_can_be_resumed(tiny, tmp_path):
    more = tiny(*SHORT, "training.epochs=3")
    whole = train(more, tmp_path / "whole")
    first = train(tiny(*SHORT), tmp_path / "first")
    for number in itertools.count():
        out = shutil.copytree(tmp_path / "first", tmp_path / f"crash {number}")
        try:
            with crash_at(number):
                train(more, out, resume=True)
            break
        except Crash:
            pass
        folder = RunFolder(out)
        epochs = folder.config().training.epochs
        assert not folder.summary_file.exists() or folder.summary()["epochs"] == epochs
        again = train(folder.config(), out, resume=True)  # as --resume --out does, without any override
        assert again["params_sha256"] == (whole if epochs == 3 else first)["params_sha256"]
        assert train(more, out, resume=True)["params_sha256"] == whole["params_sha256"]
    assert number >= 8


@pytest.mark.slow
def test_a_report_from_before_is_not_taken_for_one_of_the_longer_run(tiny, tmp_path):
    out, suite = tmp_path / "run", load_suite("quick", ["examples=20", "attacks=[]", "corruptions.names=[]"])
    train(tiny(*SHORT), out)
    evaluate([out], suite)
    train(tiny(*SHORT, "training.epochs=3"), out, resume=True)
    with pytest.raises(ConfigError, match=r"'training\.epochs' differs.*evaluate the run again"):
        compare([out], tmp_path / "compare")


@pytest.mark.slow
def test_the_command_needs_no_configuration(tiny, tiny_yaml, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", str(tiny_yaml), *SHORT, "--out", str(out)]) == 0
    assert cli.main(["train", "--resume", "--out", str(out), "training.epochs=4"]) == 0
    said = capsys.readouterr().out
    assert "epoch 4/4" in said
    sha = json.loads((out / "summary.json").read_text())["params_sha256"]
    assert sha == train(tiny(*SHORT, "training.epochs=4"), tmp_path / "whole")["params_sha256"]
    capsys.readouterr()
    assert cli.main(["train", "--resume", "--out", str(out), "training.epochs=1"]) == 2
    assert "already trained 4 epochs" in capsys.readouterr().err


@pytest.mark.long
def test_a_killed_longer_run_is_resumed_to_the_uninterrupted_one(start, tiny, tiny_yaml, tmp_path):
    out = tmp_path / "run"
    train(tiny(*SHORT), out)
    process = start("train", "--resume", "--out", out, "training.epochs=12")
    while process.poll() is None and RunFolder(out).last_epoch() < 3:
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    assert RunFolder(out).config().training.epochs == 12
    summary = train(RunFolder(out).config(), out, resume=True)
    assert summary["params_sha256"] == train(tiny(*SHORT, "training.epochs=12"), tmp_path / "w")["params_sha256"]
