"""The commands `glr-dist evaluate` and `glr-dist compare`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glr_dist import cli

TIMEOUT = 300
FEW = (
    "examples=64",
    "surrogate.training.epochs=1",
    "attacks=[{name: fgsm, eps: 0.13}, {name: random_sign, eps: 0.13}]",
    "corruptions.names=[contrast]",
    "corruptions.severities=[5]",
)
JOB = Path(__file__).parents[2] / "jobs" / "evaluate.py"


def error_of(capsys, *arguments):
    """Runs a command that must fail with a user error; returns its one line."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        code = end.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, ""), captured
    lines = [line for line in captured.err.splitlines() if not line.startswith(("training the surrogate", "epoch"))]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("glr-dist")
    return lines[0]


@pytest.mark.slow
def test_runs_are_evaluated_and_compared(run, tmp_path, monkeypatch, capsys):
    folders = [str(run("threshold")), str(run("bp"))]
    assert cli.main(["evaluate", folders[0], *FEW, "--suite", "quick", folders[1]]) == 0
    printed = capsys.readouterr().out
    for text in ("# Robustness of threshold", "# Robustness of bp", "not testable by this attack", "## Corruptions"):
        assert text in printed
    for folder in folders:
        assert f"results  {folder}/robustness/quick-test.md" in printed
    assert cli.main(["compare", folders[0], "--out", str(tmp_path / "out"), folders[1]]) == 0
    printed = capsys.readouterr().out
    assert "| clean " in printed
    assert f"results  {tmp_path / 'out'}" in printed
    assert (tmp_path / "out" / "compare.png").exists()
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert cli.main(["compare", *folders, "--suite", "quick"]) == 0
        assert f"results  {tmp_path}/runs/compare-{number}" in capsys.readouterr().out
    assert "'paper'" in error_of(capsys, "compare", *folders, "--suite", "paper")
    assert "another suite 'quick' ('seed' is 0, not 1)" in error_of(
        capsys, "evaluate", folders[0], "--suite", "quick", *FEW, "seed=1"
    )


@pytest.mark.slow
def test_a_run_is_trained_and_evaluated_by_one_command(tiny_yaml, tmp_path, capsys, monkeypatch):
    suite, out = tmp_path / "mine.yaml", tmp_path / "out"
    suite.write_text(
        "{examples: 20, attacks: [{name: fgsm, eps: 0.1, threats: [transfer]}], corruptions: {names: []},"
        " surrogate: {training: {epochs: 1}}}"
    )
    arguments = ["train", str(tiny_yaml), "training.epochs=1", "--out", str(out), "--evaluate"]
    assert "'papr'" in error_of(capsys, *arguments, "papr")
    assert not out.exists()  # before the training
    assert cli.main([*arguments, str(suite)]) == 0
    printed = capsys.readouterr().out
    assert "test_accuracy" in printed
    assert "# Robustness of out (mine-test)" in printed
    assert (out / "robustness" / "mine-test.json").exists()

    def stopped(*_, **__):
        raise KeyboardInterrupt

    assert cli.main([*arguments, str(suite), "--resume"]) == 0  # it has the report of this network already
    assert "# Robustness of out (mine-test)" in capsys.readouterr().out
    monkeypatch.setattr("glr_dist.robustness.while_training.evaluate", stopped)
    (out / "robustness" / "mine-test.json").unlink()
    assert cli.main([*arguments, str(suite), "--resume"]) == 130
    said = f"stopped before the end of the evaluation; continue with --resume --out {out} --evaluate {suite}"
    assert said in capsys.readouterr().err


WRONG = {
    "an unknown suite": (["--suite", "papr"], ["--suite: 'papr'", "paper, quick, full"]),
    "a missing file": (["--suite", "missing.yaml"], ["missing.yaml", "No such file"]),
    "an unknown attack": (["attacks=[{name: fgms}]"], ["attacks.0.name: 'fgms'", "did you mean 'fgsm'?"]),
    "an ε below 0": (["attacks=[{name: fgsm, eps: -0.1}]"], ["attacks.0.eps.0: -0.1", "greater than 0"]),
    "an unknown corruption": (["corruptions.names=[fgo]"], ["corruptions.names.0: 'fgo'", "'fog'"]),
    "an unknown setting": (["blok=3"], ["blok: unknown key", "'block'"]),
    "a device": (["--device", "cuda:99"], ["execution.device: 'cuda:99'"]),
    "no device": (["--device", "gpu"], ["device: 'gpu'"]),
    "actors": (["--actors", "few"], ["--actors", "'few'"]),
    "a baseline": (["baseline=/nowhere"], ["/nowhere: is not a run"]),
    "another option": (["--outt", "x"], ["unknown option --outt"]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_an_error_is_one_line(run, capsys, arguments, words):
    line = error_of(capsys, "evaluate", run("threshold"), *FEW, *arguments)
    assert all(word in line for word in words), line


@pytest.mark.slow
def test_a_folder_without_a_run_is_one_line(tmp_path, run, capsys):
    assert "is not a run" in error_of(capsys, "evaluate", tmp_path)
    assert "is not a run" in error_of(capsys, "evaluate", tmp_path / "nowhere")
    assert "is not a run" in error_of(capsys, "compare", tmp_path)
    assert "no run is given" in error_of(capsys, "evaluate", "seed=1")
    assert "was not evaluated; run first: glr-dist evaluate" in error_of(capsys, "compare", run("bp"))
    assert "RUN_DIR" in error_of(capsys, "evaluate")


@pytest.mark.slow
def test_a_run_named_twice_is_evaluated_once(run, capsys):
    folder = run("threshold")
    assert cli.main(["evaluate", str(folder), f"{folder}/", *FEW, "attacks=[]"]) == 0
    assert capsys.readouterr().out.count("# Robustness of") == 1


@pytest.mark.slow
def test_a_checkpoint_that_is_missing_or_damaged_is_one_line(run, capsys):
    folder = run("threshold")
    newest = max((folder / "checkpoints").iterdir())
    newest.write_bytes(b"x" + newest.read_bytes())
    assert "epoch-00012.pt: is truncated or altered" in error_of(capsys, "evaluate", folder, *FEW)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    assert "holds no checkpoint" in error_of(capsys, "evaluate", folder, *FEW)


def test_an_invalid_suite_is_reported_before_torch_is_imported(run, python):
    code = "import sys; from glr_dist.cli import main; print(main(sys.argv[1:])); print(*sys.modules)"
    lines = python(code, "evaluate", run("threshold"), "attacks=[{name: fgms}]").stdout.splitlines()
    assert lines[0] == "2"
    assert "torch" not in lines[1].split()


def test_ctrl_c_keeps_finished_blocks_and_the_same_command_continues(run, start, capsys):
    folder = run("threshold")
    many = [*FEW, "examples=null", "block=32", "attacks=[{name: random_sign}, {name: square, examples: 64}]"]
    process = start("evaluate", folder, *many, "corruptions.names=[]", env={**os.environ, "PYTHONUNBUFFERED": "1"})
    for line in process.stderr:
        if line.startswith("random_sign"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, errors
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    known = len((folder / "robustness" / ".paper-test.jsonl").read_text().splitlines())
    assert known > 12
    assert cli.main(["evaluate", str(folder), *many, "corruptions.names=[]"]) == 0
    printed = capsys.readouterr()
    assert "clean" not in printed.err  # it was in the ledger
    assert "square" in printed.out


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("backend", ["nonsense", "module://nowhere"])
def test_a_backend_of_matplotlib_that_does_not_exist_costs_no_result(run, backend):
    folder = run("bp")
    command = [sys.executable, "-m", "glr_dist", "evaluate", str(folder), "examples=64", "attacks=[]"]
    environment = {**os.environ, "MPLBACKEND": backend}
    nothing = "corruptions.names=[]"
    done = subprocess.run([*command, nothing], capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((folder / "robustness" / "paper-test.json").read_text())["clean"]["examples"] == 64
    assert "# Robustness of bp (paper-test)" in done.stdout


@pytest.mark.long
@pytest.mark.process
def test_the_job_takes_the_commands_arguments(run):
    folder = run("threshold")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, str(JOB), str(folder), *FEW, "attacks=[]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "robustness" / "paper-test.json").read_text())["clean"]["examples"] == 64
    wrong = subprocess.run([*command, "blok=1"], capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
