"""`glr-dist plan`: its output and files, and errors, which are one line."""

from __future__ import annotations

import json

import pytest
from cli.error_lines import error_line

from glr_dist import cli, data
from glr_dist.build import device_of, network_of
from glr_dist.cli.parser import parser
from glr_dist.execution.predict import Hardware
from glr_dist.planning import GPU, plan_step
from glr_dist.planning.bench import Bench
from glr_dist.planning.step_plan import METHODS


def planned(tiny_yaml, out, *arguments: object) -> dict:
    assert cli.main(["plan", str(tiny_yaml), *map(str, arguments), "--out", str(out)]) == 0
    return json.loads((out / "plan.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_plan_prints_items_predictions_and_a_simulation_and_writes_them(tiny_yaml, tmp_path, capsys):
    content = planned(tiny_yaml, tmp_path / "out")
    said = capsys.readouterr().out
    for words in (
        "conditional",
        "driver ",
        "PREDICTED",
        "speed-up",
        "SIMULATED",
        "no figure here is measured",
        "TFLOP/s",
    ):
        assert words in said
    assert all(method in said for method in METHODS)
    assert said.splitlines()[-1] == f"results  {tmp_path / 'out'}"
    assert (tmp_path / "out" / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "plan.pdf").read_bytes().startswith(b"%PDF")
    assert [kind["site"] for kind in content["kinds"]] == ["1", "3"]
    assert all(kind["measured"] > 0 and kind["predicted"] > 0 for kind in content["kinds"])
    numbers = [2**power for power in range(11)]
    assert [p["gpus"] for p in content["actors"]] == numbers
    assert set(content["simulation"]) == set(METHODS)
    assert all([p["gpus"] for p in rows] == numbers for rows in content["simulation"].values())
    assert content["gpu"]["rate"] == GPU.rate
    assert content["hardware"]["bandwidth"] is None  # infinite within a machine
    assert content["config"]["model"]["hidden"] == [8]


def test_numbers_and_assumptions_can_be_given(tiny_yaml, tmp_path, capsys):
    options = ["--actors", 4, 1, 4, "--gpu-tflops", 2, "--bandwidth", 0.5, "--latency", 100]
    content = planned(tiny_yaml, tmp_path / "out", "estimator.copies=16", *options)
    assert [p["gpus"] for p in content["actors"]] == [1, 4]
    assert {key: content["gpu"][key] for key in ("rate", "bandwidth", "latency")} == {
        "rate": 2e12,
        "bandwidth": 5e8,
        "latency": pytest.approx(1e-4),
    }
    assert "2 TFLOP/s per GPU (--gpu-tflops), 0.5 GB/s (--bandwidth) and 100 µs (--latency)" in capsys.readouterr().out
    assert content["config"]["estimator"]["copies"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["conditional", "layerwise", "joint", "pathwise"])
def test_every_estimator_and_loss_can_be_planned(tiny, tmp_path, estimator):
    copies = 100 if estimator == "pathwise" else 8
    options = f"estimator={{name: {estimator}, copies: {copies}, example_block: 32}}"
    settings = tiny("model.activation=sigmoid", options, "noise.learn=site")
    report = plan_step(settings, tmp_path, [1, 2])
    sites = {"conditional": ["1", "3"], "layerwise": ["1", "3"]}.get(estimator, [None])
    assert [kind.site for kind in report.kinds] == sites
    assert (report.driver.parameter_gradients > 0) == (estimator in ("conditional", "layerwise"))
    assert report.load.inline() > 0


def test_a_batch_with_a_shorter_last_block_has_kinds_of_its_own(tiny, tmp_path):
    report = plan_step(tiny("training.batch_size=150"), tmp_path, [1])
    assert [(kind.site, kind.examples) for kind in report.kinds] == [("1", 128), ("1", 22), ("3", 128), ("3", 22)]


def test_the_tape_of_the_batch_is_scaled_from_that_of_a_block(tiny):
    settings = tiny("training.batch_size=150")
    dataset = data.load(settings.data)
    net = network_of(settings, dataset, device_of(settings.execution))
    bench = Bench(settings, net, *dataset.train.batch(slice(0, 150)))
    # Logits, losses, and the inputs of both sites: their parameters are fewer than their δ.
    assert bench.tape_bytes == 4 * 150 * (8 + 10 + 1 + 64 + 8)


def test_an_item_that_would_take_long_is_predicted_only(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("glr_dist.planning.bench._TOO_LONG", 0.0)
    report = plan_step(tiny(), tmp_path, [1])
    assert all(kind.measured is None for kind in report.kinds)
    assert " - " in str(report)
    assert report.load.items == pytest.approx(
        [kind.predicted for kind in report.kinds for _ in range(kind.items)], rel=1e-6
    )


@pytest.mark.slow
def test_planning_leaves_no_trace_in_training(tiny, tmp_path):
    # The bench steps its own network's optimizer; two plans of one configuration see the same load.
    first, second = (plan_step(tiny(), tmp_path / name, [1, 8]) for name in "ab")
    assert (first.state_bytes, first.tape_bytes, first.load.back) == (
        second.state_bytes,
        second.tape_bytes,
        second.load.back,
    )
    assert first.simulation == second.simulation  # no measured time enters it


def test_the_defaults_of_the_command_are_those_of_the_library(tiny_yaml):
    options = parser().parse_args(["plan", str(tiny_yaml)])
    assert (options.gpu_tflops * 1e12, options.bandwidth * 1e9, options.latency * 1e-6) == pytest.approx(
        (GPU.rate, GPU.bandwidth, GPU.latency)
    )
    assert Hardware() != GPU


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--actors", "0"], ["--actors", "'0'"]),
        (["--actors", "two"], ["--actors", "'two'"]),
        (["--actors"], ["--actors"]),
        (["--gpu-tflops", "-1"], ["--gpu-tflops", "'-1'"]),
        (["--gpu-tflops", "nan"], ["--gpu-tflops", "'nan'"]),
        (["--bandwidth", "0"], ["--bandwidth", "'0'"]),
        (["--latency", "inf"], ["--latency", "'inf'"]),
        (["noise.scale=-1"], ["noise.scale"]),
        (["noise.names=['conv*']"], ["no module matches"]),
        (["training.optimizer.name=Adm"], ["training.optimizer.name", "'Adam'"]),
    ],
    ids=" ".join,
)
def test_an_error_is_one_line(tiny_yaml, tmp_path, capsys, arguments, words):
    try:
        code = cli.main(["plan", str(tiny_yaml), "--out", str(tmp_path / "out"), *arguments])
    except SystemExit as end:  # argparse
        code = end.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("glr-dist")
    assert all(word in line for word in words)


def test_a_folder_that_cannot_be_written_is_one_line(tiny_yaml, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["plan", str(tiny_yaml), "--actors", "1", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_folders_are_numbered(tiny_yaml, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert cli.main(["plan", str(tiny_yaml), "--actors", "1"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(f"runs/plan-tiny-{number}")


@pytest.mark.slow
def test_plan_refuses_the_weights_that_train_would_refuse(tiny_yaml, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert cli.main(["train", str(tiny_yaml), "training.epochs=1", "--out", str(run)]) == 0
    (tmp_path / "damaged.pt").write_bytes(b"no checkpoint")
    capsys.readouterr()
    wrong = (
        [f"model.weights={tmp_path / 'missing'}"],
        [f"model.weights={tmp_path / 'damaged.pt'}"],
        [f"model.weights={run}", "model.hidden=[9]"],
        [f"model.weights={run}", f"model.weights_sha256={'0' * 64}"],
    )
    for overrides in wrong:
        lines = {error_line(capsys, command, tiny_yaml, *overrides) for command in ("plan", "train")}
        assert len(lines) == 1, lines
        assert "model.weights" in lines.pop()
    assert len(planned(tiny_yaml, tmp_path / "out", f"model.weights={run}")["kinds"]) == 2
