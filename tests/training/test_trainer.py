"""Runs: their files, the same bits for one seed, and a continuation that leaves no trace of an interruption."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from crashes import Crash, crash_at
from kinds import KINDS

from glr_dist import cli, config
from glr_dist.data import Split
from glr_dist.errors import CheckpointError, ConfigError, SiteError
from glr_dist.figures import draw
from glr_dist.glr import GLR
from glr_dist.losses import Loss
from glr_dist.training import checkpoint
from glr_dist.training import trainer as trainer_module
from glr_dist.training.curve import curve_figure
from glr_dist.training.scores import scores
from glr_dist.training.train import train
from glr_dist.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
TIMEOUT = 300  # seconds after which a process is taken to hang


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def lasting(records: list[dict]) -> list[dict]:
    """Returns the metrics that do not depend on the clock."""
    clock = ("seconds", "time", "copies_per_second")
    return [{key: value for key, value in record.items() if key not in clock} for record in records]


def stopped_at(trainer: Trainer, step: int) -> None:
    """Runs until Ctrl-C comes in the middle of a step."""
    square_norms = trainer._square_norms

    def interrupted(squares: dict) -> None:
        if trainer.net.step == step:
            raise KeyboardInterrupt
        square_norms(squares)

    trainer._square_norms = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.run()


# ---------------------------------------------------------------- the folder


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, train(tiny(), out)


def test_a_run_leaves_its_files_and_nothing_else(finished):
    out, _ = finished
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == [
        "checkpoints",
        "checkpoints/epoch-00002.pt",
        "checkpoints/epoch-00003.pt",
        "config.yaml",
        "data.json",
        "learning_curve.pdf",
        "learning_curve.png",
        "metrics.jsonl",
        "summary.json",
    ]


def test_the_summary_is_what_the_run_returned(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary.keys() >= {
        "test_accuracy", "validation_accuracy", "train_loss", "epochs", "steps", "seconds", "forward_passes",
        "estimator", "seed", "params_sha256",
    }  # fmt: skip
    assert (summary["epochs"], summary["steps"], summary["seed"], summary["estimator"]) == (3, 9, 0, "conditional")


@pytest.mark.slow
def test_the_summary_agrees_with_the_metrics_and_the_last_checkpoint(finished, tiny, tmp_path):
    out, summary = finished
    last = metrics(out)[-1]
    for key in ("validation_accuracy", "train_loss", "forward_passes"):
        assert summary[key] == last[key]
    state = checkpoint.load(out / "checkpoints" / "epoch-00003.pt")
    assert checkpoint.digest(state["network"]) == summary["params_sha256"]
    fresh = Trainer(tiny(), tmp_path / "fresh")
    fresh.net.load_state_dict(state["network"])
    found = scores(fresh.net, fresh.test, fresh.loss)
    assert found == {"accuracy": summary["test_accuracy"], "loss": summary["test_loss"]}


def test_accuracy_and_loss_are_those_of_the_noise_free_network(finished, tiny, tmp_path):
    out, summary = finished
    fresh = Trainer(tiny(), tmp_path / "fresh")
    fresh.net.load_state_dict(checkpoint.load(out / "checkpoints" / "epoch-00003.pt")["network"])
    x, y = fresh.test.batch(slice(None))
    outputs = fresh.net.model(x)
    assert summary["test_accuracy"] == (outputs.argmax(1) == y).sum().item() / len(y)
    assert summary["test_loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, y).item(), rel=1e-5)


def test_metrics_have_one_line_for_each_epoch(finished):
    records = metrics(finished[0])
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [3, 6, 9]
    for record in records:
        assert 0 <= record["validation_accuracy"] <= 1
        assert record["copies_per_second"] > 0
        assert all(record[f"gradient_norm/{site}"] > 0 for site in ("1", "3"))
        assert all(record[f"noise_scale/{site}"] == pytest.approx(0.5) for site in ("1", "3"))
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)


@pytest.mark.slow
def test_each_epoch_has_the_scale_of_the_schedule(tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny("noise.scale=0.8", "noise.schedule={1: 0.2, 2: {'1': 0.4, '*': 0.1}}"), out)
    used = [(record["noise_scale/1"], record["noise_scale/3"]) for record in metrics(out)]
    assert used == [pytest.approx(pair) for pair in ((0.8, 0.8), (0.2, 0.2), (0.4, 0.1))]


def test_the_kept_config_is_the_resolved_one(finished, tiny):
    assert config.load_config(finished[0] / "config.yaml") == tiny()


def test_the_run_learns(finished):
    losses = [record["train_loss"] for record in metrics(finished[0])]
    assert losses == sorted(losses, reverse=True)
    assert finished[1]["test_accuracy"] > 0.3  # ten classes


@pytest.mark.slow
def test_as_many_checkpoints_are_kept_as_configured(tiny, tmp_path):
    train(tiny("training.epochs=4", "training.keep_checkpoints=3", "estimator.copies=2"), tmp_path / "run")
    names = [path.name for path in checkpoint.listed(tmp_path / "run" / "checkpoints")]
    assert names == ["epoch-00004.pt", "epoch-00003.pt", "epoch-00002.pt"]


def test_the_test_set_is_read_once_at_the_end(tiny, tmp_path, monkeypatch):
    seen = []

    def watched(net: GLR, split: Split, loss: Loss, metrics: Sequence[str]) -> dict[str, float]:
        seen.append(split)
        return scores(net, split, loss, metrics)

    monkeypatch.setattr(trainer_module, "scores", watched)
    trainer = Trainer(tiny(), tmp_path / "run")
    trainer.run()
    parts = ["test" if split is trainer.test else "validation" for split in seen]
    assert parts == ["validation"] * 3 + ["test"]


# ---------------------------------------------------------------- the same bits

VARIANTS = {
    "conditional": ["training.loss=zero_one"],
    "by site": ["estimator.copies={'1': 12, '*': 8}", "estimator.passes={'1': 3, '*': 2}", "noise.scale={'*': 0.3}"],
    "laplace iid": ["noise.law=laplace", "estimator.baseline=leave_one_out"],
    "logistic sobol": ["noise.law=logistic", "estimator.sampler=sobol", "model.activation=staircase"],
    "no pairs": ["estimator.antithetic=false", "estimator.baseline=none", "model.activation=sign"],
    "derivative head": ["estimator.head=derivative"],
    "layerwise": ["estimator.name=layerwise", "training.loss=zero_one"],
    "joint": ["estimator.name=joint", "training.loss=zero_one"],
    "pathwise": ["estimator={name: pathwise, passes: 2}", "model.activation=tanh"],
    "backpropagation": ["estimator={name: pathwise}", "noise.law=none", "model.activation=relu"],
    "dropout": ["model.dropout=0.3", "model.hidden=[12, 8]"],
    "learned by site": ["noise.learn=site"],
    "learned by unit": ["noise.learn=unit", "estimator.name=joint"],
    "penalty, input noise": ["training.penalty={spectral: {'*': 0.1}}", "noise.input={scale: 0.2}"],
    "wide": ["model.hidden=[400]", "estimator.copies=2", "training.batch_size=1294", "model.activation=sigmoid"],
}
SMALL_ITEMS = ["training.epochs=1", "estimator.block_elements=16384"]  # so that there are several of them


# These use every estimator, law, sampler and option between them; `test_glr.py` compares single gradients.
BY_DEFAULT = {"by site", "laplace iid", "logistic sobol", "layerwise", "pathwise", "dropout", "learned by unit", "wide"}
BY_DEFAULT |= {"penalty, input noise"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(overrides, id=name, marks=[] if name in BY_DEFAULT else pytest.mark.long)
        for name, overrides in VARIANTS.items()
    ],
)
def test_one_seed_gives_the_same_bits_with_any_number_of_threads(tiny, tmp_path, overrides):
    before = torch.get_num_threads()
    runs = []
    try:
        for number, (threads, torch_threads) in enumerate([(1, 1), (2, 1), ("null", 2)]):
            torch.set_num_threads(torch_threads)
            torch.manual_seed(number)  # the global generator has no part in it
            settings = tiny(*SMALL_ITEMS, *overrides, f"execution.threads={threads}")
            runs.append((train(settings, tmp_path / str(number)), lasting(metrics(tmp_path / str(number)))))
    finally:
        torch.set_num_threads(before)
    assert len({summary["params_sha256"] for summary, _ in runs}) == 1
    assert runs[0][1] == runs[1][1] == runs[2][1]  # every number in the metrics too


def test_another_seed_gives_other_parameters(tiny, tmp_path):
    shas = {train(tiny("training.epochs=1", f"seed={seed}"), tmp_path / str(seed))["params_sha256"] for seed in (0, 1)}
    assert len(shas) == 2


@pytest.mark.long
def test_every_variant_is_another_run(tiny, tmp_path):
    # The table above would show nothing if the overrides did not reach the run.
    shas = []
    for name, overrides in VARIANTS.items():
        settings = tiny(*overrides, "training.epochs=1")
        shas.append(train(settings, tmp_path / name)["params_sha256"])
    assert len(set(shas)) == len(VARIANTS)


RUN = """
import sys
from pathlib import Path
from glr_dist import config
from glr_dist.training.train import train
path, out, *overrides = sys.argv[1:]
print(train(config.load_config(path, overrides), Path(out))["params_sha256"])
"""


@pytest.mark.long
def test_the_environment_s_number_of_threads_changes_no_bit(python, tiny, tiny_yaml, tmp_path):
    before = torch.get_num_threads()
    done = python(RUN, tiny_yaml, tmp_path / "one", *VARIANTS["wide"], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    try:
        torch.set_num_threads(2)
        here = train(tiny(*VARIANTS["wide"]), tmp_path / "two")
    finally:
        torch.set_num_threads(before)
    assert done.stdout.splitlines()[-1] == here["params_sha256"]


# ---------------------------------------------------------------- resumed

# Each of the first cases has several features that a checkpoint must hold; single features run in the lane `long`.
RESUMED_TOGETHER = {
    "dropout, learned scales, momentum, schedule by step": [
        "model.dropout=0.3",
        "noise.learn=unit",
        "noise.floor=0.4",
        "training.optimizer={name: SGD, lr: 0.5, momentum: 0.9, nesterov: true}",
        "training.schedule={name: CosineAnnealingLR, per: step}",
    ],
    "scales and rates by epoch, amsgrad, passes": [
        "noise.schedule={1: 0.2, 2: {'1': 0.4, '*': 0.1}}",
        "training.optimizer={name: AdamW, lr: 0.02, amsgrad: true}",
        "training.schedule={name: StepLR, step_size: 1, gamma: 0.5}",
        "estimator.passes=2",
    ],
    "plateau, joint": [
        "training.schedule={name: ReduceLROnPlateau, patience: 0, threshold: 0.9}",
        "estimator.name=joint",
        "training.loss=zero_one",
    ],
}
RESUMED = {
    "dropout": ["model.dropout=0.3"],
    "learned scales": ["noise.learn=unit", "noise.floor=0.4"],
    "scales by epoch": ["noise.schedule={1: 0.2, 2: {'1': 0.4, '*': 0.1}}"],
    "schedule by step": ["training.schedule={name: CosineAnnealingLR, per: step}"],
    "schedule by epoch": ["training.schedule={name: StepLR, step_size: 1, gamma: 0.5}"],
    "plateau": ["training.schedule={name: ReduceLROnPlateau, patience: 0, threshold: 0.9}"],
    "momentum": ["training.optimizer={name: SGD, lr: 0.5, momentum: 0.9, nesterov: true}"],
    "amsgrad": ["training.optimizer={name: AdamW, lr: 0.02, amsgrad: true}"],
    "joint": ["estimator.name=joint", "training.loss=zero_one"],
    "passes": ["estimator.passes=2"],
    "pathwise": ["estimator={name: pathwise}", "model.activation=tanh"],
}
RESUMED_TOGETHER["feedback"] = ["estimator.feedback=biased", "training.loss=cross_entropy"]
RESUMED_TOGETHER["share of the examples"] = ["estimator.share=0.5"]
RESUMED_TOGETHER["penalty, input noise"] = ["training.penalty.spectral=0.1", "noise.input={scale: 0.2, ramp: 2}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        *(pytest.param(overrides, id=name) for name, overrides in RESUMED_TOGETHER.items()),
        *(pytest.param(overrides, id=name, marks=pytest.mark.long) for name, overrides in RESUMED.items()),
    ],
)
def test_a_run_stopped_in_mid_epoch_and_resumed_is_the_uninterrupted_run(tiny, tmp_path, overrides):
    settings = tiny(*overrides)
    whole = train(settings, tmp_path / "whole")
    out = tmp_path / "cut"
    stopped_at(Trainer(settings, out), step=5)  # three steps an epoch: in the second one
    assert not (out / "summary.json").exists()
    resumed = Trainer(settings, out, resume=True)
    assert (resumed.epoch, resumed.net.step) == (1, 3)
    again = resumed.run()
    clock = {"seconds"}
    assert {k: v for k, v in again.items() if k not in clock} == {k: v for k, v in whole.items() if k not in clock}
    assert lasting(metrics(out)) == lasting(metrics(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.long] * (kind in ("GRU", "LeNet-5", "ResNet-8", "VGG-8", "ViT")))
        for kind in KINDS
    ],
)
def test_every_kind_of_network_resumes_to_the_bits_of_the_uninterrupted_run(tiny, tmp_path, kind):
    settings = tiny("training.epochs=2", "estimator.copies=2", f"model={KINDS[kind]}")
    whole = train(settings, tmp_path / "whole")
    stopped_at(Trainer(settings, tmp_path / "cut"), step=4)  # three steps an epoch: in the second one
    assert train(settings, tmp_path / "cut", resume=True)["params_sha256"] == whole["params_sha256"]


@pytest.mark.slow
def test_a_configuration_turns_the_verification_off(tiny, tmp_path):
    model = "model={name: 'kinds:straight_through'}"
    with pytest.raises(SiteError, match=r"'1\.weight' acts .* through a jump.*training\.verify: false"):
        train(tiny(model), tmp_path / "refused")
    settings = tiny(model, "training.verify=false")
    whole = train(settings, tmp_path / "whole")
    assert "  verify: false\n" in (tmp_path / "whole" / "config.yaml").read_text()
    stopped_at(Trainer(settings, tmp_path / "cut"), step=4)
    assert train(settings, tmp_path / "cut", resume=True)["params_sha256"] == whole["params_sha256"]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("kind", ["GRU", "spiking MLP", "shared batch norm", "black box"])
def test_a_run_resumed_on_another_number_of_actors_gives_the_bits_of_the_inline_run(tiny, tmp_path, local_ray, kind):
    common = ("training.epochs=2", "estimator.copies=2", f"model={KINDS[kind]}")
    one, two = (tiny(*common, f"execution={{kind: layers, actors: {number}, device: cpu}}") for number in (1, 2))
    whole = train(tiny(*common), tmp_path / "whole")
    stopped_at(Trainer(two, tmp_path / "cut"), step=4)
    assert train(one, tmp_path / "cut", resume=True)["params_sha256"] == whole["params_sha256"]


@pytest.mark.long
def test_a_crash_at_any_write_loses_nothing_but_the_epoch_under_way(tiny, tmp_path):
    settings = tiny("training.epochs=2", "estimator.copies=2", "model.hidden=[2]")
    whole = train(settings, tmp_path / "whole")
    for number in itertools.count():
        out = tmp_path / f"crash {number}"
        try:
            with crash_at(number):
                train(settings, out)
            break
        except Crash:
            pass
        if not (out / "config.yaml").exists():  # it had not begun: it begins anew, in a new folder
            continue
        assert train(settings, out, resume=True)["params_sha256"] == whole["params_sha256"]
        assert [record["epoch"] for record in metrics(out)] == [1, 2]
    assert number >= 8  # config, two epochs with metrics and a checkpoint, summary; files and folders


def test_a_run_that_crashed_before_its_config_was_written_can_be_resumed(tiny, tmp_path, monkeypatch):
    def crash(descriptor: int) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", crash)
        with pytest.raises(Crash):
            Trainer(tiny(), tmp_path / "run")
    assert train(tiny("training.epochs=1"), tmp_path / "run", resume=True)["epochs"] == 1


@pytest.mark.slow
def test_a_last_line_of_metrics_that_a_crash_cut_off_is_dropped(tiny, tmp_path):
    settings, out = tiny(), tmp_path / "run"
    stopped_at(Trainer(settings, out), step=8)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "step": 9, "train_l')
    train(settings, out, resume=True)
    assert [record["epoch"] for record in metrics(out)] == [1, 2, 3]


@pytest.mark.slow
def test_a_folder_with_a_config_but_no_checkpoint_begins_anew(tiny, tmp_path):
    settings, out = tiny(), tmp_path / "run"
    stopped_at(Trainer(settings, out), step=2)
    assert train(settings, out, resume=True)["params_sha256"] == train(settings, tmp_path / "w")["params_sha256"]
    assert [record["epoch"] for record in metrics(out)] == [1, 2, 3]


def test_a_new_folder_may_be_resumed(tiny, tmp_path):
    assert train(tiny("training.epochs=1"), tmp_path / "new", resume=True)["epochs"] == 1


@pytest.mark.slow
def test_a_finished_run_is_resumed_to_the_same_summary(tiny, tmp_path):
    out = tmp_path / "run"
    first = train(tiny(), out)
    assert train(tiny(), out, resume=True) == first
    unplaceable = tiny("execution.kind=layers", "execution.cpus_per_actor=1000")
    assert train(unplaceable, out, resume=True) == first  # nothing is left for actors to do
    assert [record["epoch"] for record in metrics(out)] == [1, 2, 3]


@pytest.mark.slow
def test_a_finished_run_whose_metrics_are_gone_says_so_or_goes_on(tiny, tmp_path):
    out = tmp_path / "run"
    first = train(tiny(), out)
    (out / "metrics.jsonl").unlink()
    try:
        again = train(tiny(), out, resume=True)
    except (ConfigError, CheckpointError) as error:
        assert "metrics.jsonl" in str(error)
    else:
        assert again["params_sha256"] == first["params_sha256"]


# ---------------------------------------------------------------- damaged checkpoints


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_is_used(tiny, tmp_path, capsys, damage):
    settings, out = tiny("training.epochs=4"), tmp_path / "run"
    whole = train(settings, tmp_path / "whole")
    stopped_at(Trainer(settings, out), step=11)  # in the last epoch
    damage(out / "checkpoints" / "epoch-00003.pt")
    capsys.readouterr()
    resumed = Trainer(settings, out, resume=True)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ")
    assert "epoch-00003.pt" in warning
    assert "using epoch-00002.pt" in warning
    assert resumed.epoch == 2
    assert resumed.run()["params_sha256"] == whole["params_sha256"]
    assert [record["epoch"] for record in metrics(out)] == [1, 2, 3, 4]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tiny, tmp_path):
    out = tmp_path / "run"
    stopped_at(Trainer(tiny(), out), step=8)
    for path in checkpoint.listed(out / "checkpoints"):
        truncate(path)
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"epoch-00002\.pt.*epoch-00001\.pt") as caught:
        Trainer(tiny(), out, resume=True)
    assert "\n" not in str(caught.value)
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "3", "- 1\n", "a: [", "\x07"], ids=repr)
def test_a_damaged_config_of_the_run_is_a_config_error(tiny, tmp_path, content):
    out = tmp_path / "run"
    train(tiny("training.epochs=1"), out)
    (out / "config.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        Trainer(tiny("training.epochs=1"), out, resume=True)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- what may change


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "noise.scale=0.6",
        "noise.scale={'*': 0.5}",
        "training.optimizer.lr=0.03",
        "training.optimizer.amsgrad=true",
        "training.schedule={name: ExponentialLR, gamma: 0.9}",
        "estimator.block_elements=4096",
        "data.validation=0.2",
    ],
)
def test_a_run_is_not_resumed_with_another_setting(tiny, tmp_path, override):
    out = tmp_path / "run"
    train(tiny("training.epochs=1"), out)
    with pytest.raises(ConfigError, match="leave out --resume") as caught:
        Trainer(tiny("training.epochs=1", override), out, resume=True)
    assert str(caught.value).startswith(override.partition("=")[0])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_changed_schedule_of_the_noise_is_told_as_a_whole(tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny("noise.schedule={1: 0.2}"), out)
    told = r"noise.schedule: the run in .* has \{'1': 0.2\}, not \{'1': 0.2, '2': 0.1\}; leave out --resume"
    with pytest.raises(ConfigError, match=told):
        Trainer(tiny("noise.schedule={1: 0.2, 2: 0.1}"), out, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "override", ["execution.threads=1", "data.root=/elsewhere", "training.keep_checkpoints=5", "diagnose.draws=3"]
)
def test_a_run_is_resumed_where_what_computes_it_alone_has_changed(tiny, tmp_path, override):
    out = tmp_path / "run"
    stopped_at(Trainer(tiny(), out), step=5)
    sha = train(tiny(override), out, resume=True)["params_sha256"]
    assert sha == train(tiny(), tmp_path / "whole")["params_sha256"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_things_is_left_alone(tiny, tmp_path, resume):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("...")
    with pytest.raises(ConfigError, match="is not empty"):
        Trainer(tiny(), out, resume=resume)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_run_is_not_overwritten(finished, tiny):
    out, summary = finished
    with pytest.raises(ConfigError, match="is not empty; continue it with --resume"):
        Trainer(tiny(), out)
    assert json.loads((out / "summary.json").read_text()) == summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.hidden=[9]"], "belongs to another network"),
        (["model.hidden=[8, 8]"], "belongs to another network"),
        (["noise.learn=unit"], "belongs to another network"),
        (["noise.learn=site"], "belongs to another optimizer or schedule"),
        (["training.optimizer={name: SGD, lr: 0.02}"], "belongs to another optimizer or schedule"),
        (["training.optimizer={name: SGD, lr: 0.02, momentum: 0.9}"], "belongs to another optimizer or schedule"),
        (["training.optimizer={name: RMSprop, lr: 0.02}"], "belongs to another optimizer or schedule"),
        (["training.schedule={name: StepLR, step_size: 1}"], "only one of the two has a learning-rate schedule"),
    ],
)
def test_a_folder_that_was_edited_together_with_the_command_is_refused_in_one_line(
    finished, tiny, tmp_path, overrides, words
):
    shutil.copytree(finished[0], tmp_path / "run")
    edited = tiny(*overrides, "training.epochs=4")
    (tmp_path / "run" / "config.yaml").write_text(config.dump_config(edited))
    with pytest.raises(CheckpointError, match=words) as caught:
        Trainer(edited, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_learning_curve_is_a_png(finished, tmp_path):
    draw(tmp_path / "curve.png", lambda: curve_figure(metrics(finished[0])))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_fails_costs_a_warning_and_no_result(tiny, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ImportError("no backend")

    monkeypatch.setattr(trainer_module, "curve_figure", fail)
    summary = train(tiny(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert line.endswith("learning_curve.png: cannot be drawn (no backend)")


@pytest.mark.process
def test_a_second_process_is_refused_while_a_run_trains(tiny_yaml, start, tmp_path):
    first = start("train", tiny_yaml, "training.epochs=2000", "--out", tmp_path / "run")
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.05)
        for resume in ([], ["--resume"]):
            second = start("train", tiny_yaml, "training.epochs=2000", "--out", tmp_path / "run", *resume)
            out, err = second.communicate(timeout=TIMEOUT)
            assert second.returncode == 2, out
            assert f"is in use by process {first.pid} on " in err.splitlines()[-1]
    finally:
        first.kill()
        first.communicate()


# ---------------------------------------------------------------- numbers that are not finite


def test_a_run_whose_weights_explode_in_its_last_step_does_not_end_as_if_all_were_well(tiny, tmp_path):
    # One step: the next shared pass, which would find the logits, never comes.
    settings = tiny(
        "model.activation=relu",
        "training.optimizer={name: SGD, lr: 1e38}",
        "training.batch_size=1294",
        "training.epochs=1",
    )
    with pytest.raises(FloatingPointError, match="not finite"):
        train(settings, tmp_path / "run")


def test_metrics_and_summary_are_json_that_any_reader_takes(finished):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for line in (finished[0] / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    json.loads((finished[0] / "summary.json").read_text(), parse_constant=refuse)


# ---------------------------------------------------------------- processes that end early

# Copies enough that an epoch takes a good fraction of a second: a signal falls into its middle.
LONG = ("training.epochs=4", "estimator.copies=1500", "training.batch_size=128")


def started(start, yaml_file: Path, out: Path, epochs: int, overrides: Sequence[str] = LONG) -> subprocess.Popen[str]:
    """A run in another process that has finished some epochs and is in the middle of the next one."""
    process = start("train", yaml_file, "--out", out, *overrides)
    newest = out / "checkpoints" / checkpoint.name_of(epochs)
    deadline = time.monotonic() + TIMEOUT
    while not newest.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(metrics(out)[-1]["seconds"] / epochs / 3)  # a third of an epoch
    return process


@pytest.fixture(scope="module")
def long_run(tiny, tmp_path_factory) -> dict:
    return train(tiny(*LONG), tmp_path_factory.mktemp("long") / "run")


@pytest.mark.long
def test_a_killed_run_is_resumed_to_the_uninterrupted_one(start, tiny, tiny_yaml, tmp_path, long_run):
    out = tmp_path / "run"
    process = started(start, tiny_yaml, out, 2)
    process.kill()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    summary = train(tiny(*LONG, "execution.threads=1"), out, resume=True)
    assert summary["params_sha256"] == long_run["params_sha256"]
    assert [record["epoch"] for record in metrics(out)] == [1, 2, 3, 4]
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", ["GRU", "spiking MLP", "mixture of experts"])
def test_a_killed_run_of_another_kind_of_network_is_resumed_too(start, tiny, tiny_yaml, tmp_path, kind):
    overrides = ("training.epochs=3", "training.batch_size=128", "estimator.copies=64", f"model={KINDS[kind]}")
    process = started(start, tiny_yaml, tmp_path / "run", 1, overrides)
    process.kill()
    process.communicate(timeout=TIMEOUT)
    assert not (tmp_path / "run" / "summary.json").exists()
    summary = train(tiny(*overrides), tmp_path / "run", resume=True)
    assert summary["params_sha256"] == train(tiny(*overrides), tmp_path / "whole")["params_sha256"]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_run_says_how_to_resume_and_is_resumed(start, tiny, tiny_yaml, tmp_path, long_run, number):
    out = tmp_path / "run"
    process = started(start, tiny_yaml, out, 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    (line,) = errors.splitlines()
    assert "stopped after epoch" in line
    assert f"--resume --out {out}" in line
    assert not (out / "summary.json").exists()
    assert train(tiny(*LONG), out, resume=True)["params_sha256"] == long_run["params_sha256"]
    assert [record["epoch"] for record in metrics(out)] == [1, 2, 3, 4]


# ---------------------------------------------------------------- what it is for


@pytest.mark.long
def test_digits_with_threshold_units_reach_their_accuracy(tmp_path):
    summary = train(config.load_config(CONFIGS / "digits.yaml", ["execution.device=cpu"]), tmp_path / "run")
    assert summary["test_accuracy"] >= 0.96


def test_a_run_stopped_before_an_epoch_is_on_disk_names_the_last_that_is(tiny_yaml, tmp_path, monkeypatch, capsys):
    out, save = tmp_path / "run", checkpoint.save

    def interrupted(path, state):
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    assert cli.main(["train", str(tiny_yaml), "--out", str(out)]) == 130
    assert f"stopped after epoch 1; continue with --resume --out {out}" in capsys.readouterr().err
    assert [path.name for path in checkpoint.listed(out / "checkpoints")] == [checkpoint.name_of(1)]
