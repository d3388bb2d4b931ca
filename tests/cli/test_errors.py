"""Errors of a user: one line, exit code 2, nothing lost."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from cli.error_lines import error_line

from glr_dist import cli
from glr_dist.training import checkpoint

TIMEOUT = 300  # seconds after which a process is taken to hang


def test_the_bare_command_prints_help(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    said = capsys.readouterr()
    assert (end.value.code, said.err) == (0, "")
    assert all(command in said.out for command in ("usage: glr-dist", "train", "config"))


@pytest.mark.process
@pytest.mark.parametrize("module", ["glr_dist", "glr_dist.cli"])
def test_the_package_runs_as_a_module(module, tiny_yaml, tmp_path):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    missing = run("train")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "CONFIG.yaml is missing" in missing.stderr
    assert "usage: glr-dist" in run().stdout
    shown = run("config", tiny_yaml)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "law: gaussian" in shown.stdout


@pytest.mark.process
def test_help_takes_less_than_two_seconds():
    # The processor's time rather than the clock's: the machine may be busy.
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "glr_dist", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "x.yaml"], ["'trian'", "train"]),
        (["train"], ["CONFIG.yaml"]),
        (["train", "x.yaml", "--uot", "y"], ["unknown option --uot"]),
        (["config", "x.yaml", "--out", "y"], ["unknown option --out"]),
        (["train", "x.yaml", "--out"], ["--out"]),
        (["train", "missing.yaml"], ["missing.yaml", "No such file"]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) else "",
)
def test_a_wrong_command_is_one_line(capsys, arguments, words):
    line = error_line(capsys, *arguments)
    assert all(word in line for word in words)


WRONG = {
    # overrides: words that the line holds
    "unknown key": (["modle.hidden=[3]"], ["modle", "unknown key", "'model'"]),
    "wrong type": (["model.hidden=many"], ["model.hidden: 'many'"]),
    "sigma of 0": (["noise.scale=0"], ["noise.scale: 0", "greater than 0"]),
    "sigma below 0": (["noise.scale=-1"], ["noise.scale: -1", "greater than 0"]),
    "odd copies": (["estimator.copies=7"], ["estimator.copies: 7 is odd"]),
    "orthogonal laplace": (["noise.law=laplace", "estimator.sampler=orthogonal"], ["estimator.sampler", "gaussian"]),
    "optimizer": (["training.optimizer.name=Adm"], ["training.optimizer.name", "'Adam'"]),
    "argument": (["training.optimizer.lrr=1"], ["training.optimizer.lrr", "'lr'"]),
    "value of an argument": (["training.optimizer.lr=-1"], ["training.optimizer", "-1"]),
    "value that is no float32": (["training.optimizer={name: SGD, lr: 1e40}"], ["training.optimizer"]),
    "optimizer of sparse gradients": (["training.optimizer={name: SparseAdam}"], ["training.optimizer"]),
    "schedule": (["training.schedule={name: StepRL, step_size: 1}"], ["training.schedule.name", "'StepLR'"]),
    "names that match nothing": (["noise.names=['conv*']"], ["no module matches"]),
    "scales that match nothing": (["noise.scale={'conv*': 1, '*': 1}"], ["noise.scale", "'conv*' matches no site"]),
    "copies for some sites": (["estimator.copies={'1': 8}"], ["estimator.copies", "the site '3'"]),
    "sites that own too little": (["noise.names=['3']"], ["no site owns the parameter '1.weight'"]),
    "site type": (["noise.sites=[Linaer]"], ["noise.sites", "'Linear'"]),
    "site type that does not occur": (["noise.sites=[Conv1d,Linear]"], ["sites", "Conv1d"]),
    "far site type": (["noise.sites=[Zzzzzz]"], ["noise.sites", "nearest are"]),
    "pathwise threshold": (["estimator={name: pathwise}"], ["pathwise", "use another estimator"]),
    "derivative head, 0-1 loss": (["estimator.head=derivative", "training.loss=zero_one"], ["estimator.head"]),
    "a direction left alone": (
        ["estimator.baseline=leave_one_out", "model.hidden=[3]", "estimator.block_elements=1"],
        ["estimator.copies", "leave_one_out"],
    ),
    "more units than Sobol has dimensions": (
        ["model.hidden=[21202]", "estimator.sampler=sobol", "training.epochs=1"],
        ["sobol"],
    ),
    "no data": (["data.name=mnist", "data.root=/nowhere", "data.download=false"], ["mnist is not in /nowhere"]),
    "no training example": (["data.validation=0.9999"], ["data.validation"]),
    "split seed": (["data.split_seed=9223372036854775808"], ["data.split_seed"]),
    "device": (["execution.device='cuda:99'"], ["execution.device: 'cuda:99'"]),
    "actors": (["execution.actors=2"], ["execution.actors: 2"]),
    "override": (["seed"], ["section.key=value"]),
    "loss that is not finite": (
        ["model.activation=relu", "training.optimizer={name: SGD, lr: 1e30}"],
        ["not finite at step 1"],
    ),
    "noise beyond the range of floats": (["noise.scale=1e300"], ["not finite"]),
}


SMALL = ["diagnose.copies=[8]", "diagnose.draws=2", "diagnose.reference_passes=4", "diagnose.batch=8"]
NOT_IN_DIAGNOSE = (
    "training.optimizer",
    "training.schedule",
    "estimator.copies",
)  # it trains nothing, with other copies
CASES = {
    f"{command}: {name}": (command, *case)
    for name, case in WRONG.items()
    for command in ("train", "diagnose")
    if command == "train" or not any(override.startswith(NOT_IN_DIAGNOSE) for override in case[0])
} | {"diagnose: odd copies": ("diagnose", ["diagnose.copies=[8, 7]"], ["copies", "7 is odd"])}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "overrides", "words"), CASES.values(), ids=CASES)
def test_a_wrong_configuration_is_one_line(capsys, tiny_yaml, tmp_path, command, overrides, words):
    line = error_line(capsys, command, tiny_yaml, *SMALL, *overrides, "--out", tmp_path / "run")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1\nb: }", ["is not YAML", "line 2"]),
        (b"\xff\xfe\x00\x80", ["not text"]),
        (b"- 1", ["mapping of sections"]),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(capsys, tmp_path, content, words):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    line = error_line(capsys, "train", path, "--out", tmp_path / "run")
    assert str(path) in line
    assert all(word in line for word in words)


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content


@pytest.mark.parametrize(
    "content", [idx((60_000, 28, 28), bytes(1000)), bytes(range(256)), b""], ids=["cut", "junk", "0"]
)
def test_a_damaged_data_file_is_one_line(capsys, tiny_yaml, tmp_path, content):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, size in (("train", 60_000), ("t10k", 10_000)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(content)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx((size,), bytes(size)))
    overrides = ["data.name=mnist", f"data.root={tmp_path}", "data.download=false"]
    line = error_line(capsys, "train", tiny_yaml, *overrides, "--out", tmp_path / "run")
    assert "damaged" in line
    assert str(folder) in line


@pytest.mark.parametrize("place", ["a file", "below a file", "/dev/null/x", "not empty"])
def test_a_folder_that_cannot_take_the_results_is_one_line(capsys, tiny_yaml, tmp_path, place):
    file = tmp_path / "file"
    file.write_text("mine")
    out = {"a file": file, "below a file": file / "x", "not empty": tmp_path}.get(place, Path(place))
    line = error_line(capsys, "train", tiny_yaml, "--out", out)
    assert str(out) in line
    assert ("is not empty" if place == "not empty" else "cannot be written") in line
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_damaged_checkpoints_and_a_changed_setting_are_one_line(capsys, tiny_yaml, tmp_path):
    run = ["train", str(tiny_yaml), "--out", str(tmp_path / "run")]
    assert cli.main(run) == 0
    capsys.readouterr()
    line = error_line(capsys, *run, "--resume", "noise.scale=0.75")
    assert "noise.scale: " in line
    assert "leave out --resume" in line
    for path in checkpoint.listed(tmp_path / "run" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-1])
    line = error_line(capsys, *run, "--resume")
    assert "epoch-00003.pt" in line
    assert "epoch-00002.pt" in line


# The disk is full from the third epoch's checkpoint on: no file may grow beyond some bytes, as in setrlimit(2).
FULL_DISK = """
import resource, signal, sys
from glr_dist.cli import main
from glr_dist.training import checkpoint
from glr_dist.tuning.search_config import load_search

save = checkpoint.save

def limited(path, state):
    if state["epoch"] == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    save(path, state)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoint.save = limited
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoints_whole(python, tiny_yaml, tmp_path):
    pytest.importorskip("resource")
    out = tmp_path / "run"
    done = python(FULL_DISK, "train", tiny_yaml, "training.epochs=4", "--out", out)
    assert done.returncode not in (0, 1)
    (line,) = done.stderr.splitlines()
    assert str(out) in line
    assert "File too large" in line
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["epoch-00001.pt", "epoch-00002.pt"]
    assert [checkpoint.load(out / "checkpoints" / name)["epoch"] for name in names] == [1, 2]
    assert cli.main(["train", str(tiny_yaml), "training.epochs=4", "--out", str(out), "--resume"]) == 0
    assert cli.main(["train", str(tiny_yaml), "training.epochs=4", "--out", str(tmp_path / "whole")]) == 0
    shas = {json.loads((run / "summary.json").read_text())["params_sha256"] for run in (out, tmp_path / "whole")}
    assert len(shas) == 1


@pytest.mark.parametrize("overrides", [["noise.scale=-1"], ["estimator={name: pathwise}"]], ids=" ".join)
def test_an_error_ends_a_process_with_code_2_and_no_traceback(start, tiny_yaml, tmp_path, overrides):
    # What the tests above see of `main`, seen from outside: once before torch is imported, once after.
    process = start("train", tiny_yaml, *overrides, "--out", tmp_path / "run")
    said, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2, errors
    assert "epoch" not in said
    assert len(errors.splitlines()) == 1
