"""Output of the commands: lines, a progress bar, numbers."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from cli.error_lines import error_line

from glr_dist import cli
from glr_dist.cli import output
from glr_dist.config import load_config
from glr_dist.tuning.search_config import load_search

TIMEOUT = 300  # seconds after which a process is taken to hang


def test_config_prints_yaml_that_loads_to_the_same_config(tiny_yaml, tmp_path, capsys):
    overrides = ["noise.scale=1e-2", "estimator.copies={'*': 4}", "training.schedule={name: StepLR, step_size: 2}"]
    assert cli.main(["config", str(tiny_yaml), *overrides]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed) == load_config(tiny_yaml, overrides)


@pytest.mark.slow
def test_overrides_may_stand_before_and_after_options(tiny_yaml, tmp_path, capsys):
    seeds = []
    for number, order in enumerate(
        (["seed=7", "training.epochs=1", "--out", "OUT"], ["seed=7", "--out", "OUT", "training.epochs=1"])
    ):
        out = tmp_path / str(number)
        arguments = [str(out) if word == "OUT" else word for word in order]
        assert cli.main(["train", str(tiny_yaml), *arguments]) == 0
        seeds.append(json.loads((out / "summary.json").read_text())["seed"])
        assert (out / "config.yaml").read_text() == (tmp_path / "0" / "config.yaml").read_text()
    assert seeds == [7, 7]


@pytest.mark.long
def test_plain_lines_where_there_is_no_terminal(start, tiny_yaml, tmp_path):
    process = start("train", tiny_yaml, "--out", tmp_path / "run")
    said, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert errors == ""
    lines = said.splitlines()
    assert dict(line.split(maxsplit=1) for line in lines[:5]) == {
        "results": str(tmp_path / "run"),
        "device": "cpu, inline",
        "data": "digits: 1,294 training, 144 validation, 359 test images",
        "parameters": "610",
        "sites": "1, 3",
    }
    for number, line in enumerate(lines[5:8], 1):
        assert line.startswith(f"epoch {number}/3 ")
        assert all(word in line for word in ("train loss", "validation accuracy", "copies/s", "s left"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    printed = dict(line.split(maxsplit=1) for line in lines[8:])
    assert list(printed) == [*summary, "results", "next"]
    assert printed["results"] == str(tmp_path / "run")
    assert printed["next"] == f"glr-dist evaluate {tmp_path / 'run'}"
    assert printed["params_sha256"] == summary["params_sha256"]
    assert printed["test_accuracy"] == f"{summary['test_accuracy']:.4g}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.96657381, "0.9666"),
        (2.5e-7, "2.5e-07"),
        (123456.789, "123,457"),
        (3.0, "3"),
        (3, "3"),
        ("x", "x"),
        ([0.12345, 0.5], "0.1235, 0.5"),
    ],
)
def test_numbers_are_printed_with_four_digits(value, said):
    assert output.figure(value) == said


@pytest.mark.parametrize(("columns", "whole"), [(200, True), (60, False)])
def test_a_line_is_not_longer_than_the_terminal(monkeypatch, capsys, columns, whole):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    output.show("params_sha256", "0" * 64)
    output.show_whole("results", "/" + "x" * 100)  # a path is of no use if it is cut
    first, second = capsys.readouterr().out.splitlines()
    assert ("…" in first, len(first) <= columns) == (not whole, True)
    assert second.endswith("/" + "x" * 100)


@pytest.mark.parametrize("columns", [80, pytest.param(160, marks=pytest.mark.long)])
def test_a_progress_bar_in_a_terminal(start, tiny_yaml, tmp_path, columns):
    pty = pytest.importorskip("pty")
    import fcntl
    import termios

    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    epochs = "training.epochs=20"
    process = start("train", tiny_yaml, "--out", tmp_path / "run", epochs, stderr=end, stdin=subprocess.DEVNULL)
    os.close(end)
    drawn = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        drawn += piece
    said, _ = process.communicate(timeout=TIMEOUT)
    os.close(terminal)
    assert process.returncode == 0
    assert "epoch 1/20 " not in said  # no plain lines beside the bar
    last = [line for line in drawn.decode().replace("\n", "\r").split("\r") if line.strip()][-1]
    for word in ("100%", "epoch 20/20", "loss ", "accuracy ", "copies/s"):
        assert word in last
    elapsed_and_left = last.rpartition("|")[2].split(",")[0]
    assert "<" in elapsed_and_left
    assert all(part.strip().replace(":", "").isdigit() for part in elapsed_and_left.split("<"))


@pytest.mark.slow
def test_results_go_to_a_new_numbered_folder_by_default(tiny_yaml, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["train", str(tiny_yaml), "training.epochs=1", "estimator.copies=2"]
    assert cli.main(short) == 0
    assert cli.main(short) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["tiny-1", "tiny-2"]
    assert capsys.readouterr().out.splitlines()[-1].split() == ["next", "glr-dist", "evaluate", "runs/tiny-2"]
    assert cli.main([*short, "--resume"]) == 0  # the newest one
    assert str(tmp_path / "runs" / "tiny-2") in capsys.readouterr().out
    assert len(list(Path("runs").iterdir())) == 2


@pytest.mark.slow
def test_a_resumed_run_needs_no_configuration(tiny_yaml, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", str(tiny_yaml), "--out", str(out)]) == 0
    sha = json.loads((out / "summary.json").read_text())["params_sha256"]
    (out / "checkpoints" / "epoch-00003.pt").unlink()
    capsys.readouterr()
    for words in (["--resume", "--out", str(out)], ["--out", str(out), "execution.threads=1", "--resume"]):
        assert cli.main(["train", *words]) == 0
        assert json.loads((out / "summary.json").read_text())["params_sha256"] == sha
    assert "resumed              after epoch 2" in capsys.readouterr().out
    assert "config.yaml" in error_line(capsys, "train", "--resume", "--out", tmp_path / "nothing")
    assert "CONFIG.yaml is missing" in error_line(capsys, "train", "--resume")
    assert "CONFIG.yaml is missing" in error_line(capsys, "train", "--out", out)
    assert "CONFIG.yaml is missing" in error_line(capsys, "diagnose", "seed=1")
    assert "noise.scale: " in error_line(capsys, "train", "--resume", "--out", out, "noise.scale=0.75")


SEARCH = "tune: {space: {noise.scale: {loguniform: [0.1, 1]}}, trials: 3}\nestimator: {copies: 8}\n"


def test_config_prints_a_search_that_loads_to_the_same_search(tmp_path, capsys):
    path, printed = tmp_path / "search.yaml", tmp_path / "printed.yaml"
    path.write_text(SEARCH)
    assert cli.main(["config", str(path), "tune.trials=5", "noise.law=laplace"]) == 0
    printed.write_text(capsys.readouterr().out)
    assert "algorithm: optuna" in printed.read_text()  # a default
    first, second = load_search(path, ["tune.trials=5", "noise.law=laplace"]), load_search(printed)
    assert (first.base, first.tune) == (second.base, second.tune)
    assert "tune.space" in error_line(capsys, "config", path, "tune.space={seed: 1}")
