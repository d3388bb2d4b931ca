"""The command line: fast to start, one line per error, plain lines or a progress bar."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from glr_dist import cli
from glr_dist.cli import output
from glr_dist.cli.arguments import folder
from glr_dist.cli.parser import COMMANDS
from glr_dist.config import load_config
from glr_dist.runs import claim
from glr_dist.training import checkpoint
from glr_dist.tuning.search_config import load_search

TIMEOUT = 300  # seconds after which a process is taken to hang
HEAVY = ("torch", "ray", "mlflow", "pydantic", "yaml", "numpy", "sklearn", "scipy", "matplotlib")

# ---------------------------------------------------------------- what starting costs

HELP = """
import sys
from glr_dist.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0
print("IMPORTED", *sorted(name for name in sys.modules if "." not in name))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["tune", "--help"], ["--version"]], ids=" ".join
)
def test_help_and_version_import_nothing_heavy(python, arguments):
    done = python(HELP, *arguments)
    assert done.returncode == 0, done.stderr
    *said, imported = done.stdout.splitlines()
    assert "glr-dist" in said[0]
    assert not set(HEAVY) & set(imported.split())


def test_the_installed_command_is_the_function_that_is_tested_here(start):
    (script,) = entry_points(group="console_scripts", name="glr-dist")
    assert script.load() is cli.main
    process = start("--help")
    said, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    assert all(command in said for command in ("train", "diagnose", "config"))


def test_importing_the_package_imports_nothing_heavy(python):
    done = python("import glr_dist, sys; print(*sys.modules)")
    assert not set(HEAVY) & set(done.stdout.split())


def test_the_configuration_is_printed_without_torch(python, tiny_yaml):
    code = "import sys; from glr_dist.cli import main; main(sys.argv[1:]); print('#', *sys.modules)"
    imported = python(code, "config", tiny_yaml).stdout.splitlines()[-1].split()
    assert "pydantic" in imported
    assert not {"torch", "ray", "mlflow"} & set(imported)


# ---------------------------------------------------------------- what is printed


def test_config_prints_yaml_that_loads_to_the_same_config(tiny_yaml, tmp_path, capsys):
    overrides = ["noise.scale=1e-2", "estimator.copies={'*': 4}", "training.schedule={name: StepLR, step_size: 2}"]
    assert cli.main(["config", str(tiny_yaml), *overrides]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed) == load_config(tiny_yaml, overrides)


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


def test_plain_lines_where_there_is_no_terminal(start, tiny_yaml, tmp_path):
    process = start("train", tiny_yaml, "--out", tmp_path / "run")
    said, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert errors == ""
    lines = said.splitlines()
    assert dict(line.split(maxsplit=1) for line in lines[:4]) == {
        "results": str(tmp_path / "run"),
        "device": "cpu, inline",
        "data": "digits: 1,294 training, 144 validation, 359 test images",
        "parameters": "610 in a network with 2 sites",
    }
    for number, line in enumerate(lines[4:7], 1):
        assert line.startswith(f"epoch {number}/3 ")
        assert all(word in line for word in ("train loss", "validation accuracy", "copies/s", "s left"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    printed = dict(line.split(maxsplit=1) for line in lines[7:])
    assert list(printed) == [*summary, "results", "next"]
    assert printed["results"] == str(tmp_path / "run")
    assert printed["next"] == f"glr-dist evaluate {tmp_path / 'run'}"
    assert printed["params_sha256"] == summary["params_sha256"]
    assert printed["test_accuracy"] == f"{summary['test_accuracy']:.4g}"


def test_the_folder_is_printed_before_torch_is_imported(python, tiny_yaml, tmp_path):
    code = """
import sys
from glr_dist.cli import main, train

show = train.show_whole

def watched(name, value):
    print("torch" in sys.modules, end=" ")
    show(name, value)

train.show_whole = watched
main(sys.argv[1:])
"""
    done = python(code, "train", tiny_yaml, "training.epochs=1", "--out", tmp_path / "run")
    first, *_, second, _ = done.stdout.splitlines()
    assert first.split() == ["False", "results", str(tmp_path / "run")]
    assert second.split() == ["True", "results", str(tmp_path / "run")]


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


@pytest.mark.parametrize("columns", [80, 160])
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


# ---------------------------------------------------------------- folders


@pytest.mark.process
def test_trainings_that_start_at_the_same_time_all_run(start, tiny_yaml, tmp_path):
    processes = [start("train", tiny_yaml, "training.epochs=1", f"seed={seed}", cwd=tmp_path) for seed in range(3)]
    ended = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, ended, strict=True)] == [
        (0, "")
    ] * 3
    folders = [Path(said.splitlines()[0].split()[1]) for said, _ in ended]
    assert sorted(folder.name for folder in folders) == ["tiny-1", "tiny-2", "tiny-3"]
    seeds = [json.loads((folder / "summary.json").read_text())["seed"] for folder in folders]
    assert seeds == [0, 1, 2]


@pytest.mark.process
@pytest.mark.parametrize("command", ["train", "diagnose", "plan"])
def test_a_folder_that_another_process_writes_to_is_one_line(python, tiny_yaml, tmp_path, command):
    out = tmp_path / "run"
    with claim(out):
        code = "import sys; from glr_dist.cli import main; sys.exit(main(sys.argv[1:]))"
        done = python(code, command, tiny_yaml, "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"{out}: is in use by process {os.getpid()} on " in line


def test_a_new_folder_without_results_is_removed(tiny_yaml, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["data.test=0.0002"], ["data.test=0.0002", "--out", "mine"], ["noise.scale=-1"]):
        assert cli.main(["train", str(tiny_yaml), *words]) == 2
    (tmp_path / "empty").mkdir()
    assert cli.main(["train", str(tiny_yaml), "data.test=0.0002", "--out", "empty"]) == 2
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == ["empty", "tiny.yaml"]


@pytest.mark.parametrize(
    "uri", ["s3://bucket/x", "gs://bucket", "hdfs:///x", "S3://b/x", "file://host/x", "http://h/x", "dbfs+v2://x"]
)
@pytest.mark.parametrize("command", ["train", "tune", "diagnose", "plan", "compare"])
def test_results_on_anything_but_a_local_folder_are_refused(tmp_path, monkeypatch, capsys, command, uri):
    monkeypatch.chdir(tmp_path)
    line = error_line(capsys, command, "x.yaml", "--out", uri)
    assert f"--out: '{uri}' is not a local folder" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "form", ["file://{}", "file://localhost{}", "FILE://{}", "file://{}%20x", "{}", "{}:1", "{}/c:/x"]
)
def test_local_folders_may_be_written_as_uris(tmp_path, form):
    place = tmp_path / "run"
    expected = {
        "{}": place,
        "{}:1": Path(f"{place}:1"),
        "{}/c:/x": place / "c:" / "x",
        "file://{}%20x": Path(f"{place} x"),
    }
    assert folder(form.format(place)) == expected.get(form, place)


# ---------------------------------------------------------------- output that fails


@pytest.mark.process
@pytest.mark.parametrize("command", ["train", "config"])
def test_a_reader_that_has_gone_ends_the_command_quietly(start, tiny_yaml, tmp_path, command):
    reader, writer = os.pipe()
    os.close(reader)
    words = ["--out", tmp_path / "run"] if command == "train" else []
    process = start(command, tiny_yaml, *words, stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (141, "")


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_named(start, tiny_yaml):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = start("config", tiny_yaml, stdout=full)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (2, "glr-dist: standard output: No space left on device\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes"), "AF_UNIX path length cannot exceed 107 bytes"),
        (OSError(28, "No space left on device", "/disk/file"), "/disk/file: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),  # of a socket: the output can be written
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_of_the_system_is_named_as_it_is(monkeypatch, capsys, tiny_yaml, error, said):
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("glr_dist.config.load_config", fail)
    assert error_line(capsys, "train", tiny_yaml) == f"glr-dist: {said}"


@pytest.mark.process
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "tkagg"])
def test_a_picture_that_cannot_be_drawn_costs_nothing_but_a_warning(python, tiny_yaml, tmp_path, backend):
    code = "import sys; from glr_dist.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "train", tiny_yaml, "training.epochs=1", "--out", tmp_path / "run", MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"test_accuracy        {summary['test_accuracy']:.4g}" in done.stdout
    assert (tmp_path / "run" / "learning_curve.png").exists() or done.stderr.startswith("warning: ")


# ---------------------------------------------------------------- completion


def test_each_shell_completes_every_command_option_and_setting(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        said = capsys.readouterr().out
        for name in (*COMMANDS, "resume", "suite", "noise.scale=", "training.optimizer.lr=", "bash"):
            assert re.search(rf"[\s'\-]{re.escape(name)}\b|{re.escape(name)}", said), (shell, name)
    assert "invalid choice: 'tcsh'" in error_line(capsys, "completion", "tcsh")


COMPLETED = [
    (["ev"], ["evaluate"]),
    (["train", "noise.s"], ["noise.scale=", "noise.schedule=", "noise.sites="]),
    (["train", "--re"], ["--resume"]),
    (["evaluate", "--su"], ["--suite"]),
    (["completion", "z"], ["zsh"]),
]


@pytest.mark.process
@pytest.mark.parametrize(("words", "expected"), COMPLETED, ids=str)
def test_bash_completes(tmp_path, words, expected, capsys):
    if (bash := shutil.which("bash")) is None:
        pytest.skip("needs bash")
    cli.main(["completion", "bash"])
    (tmp_path / "code").write_text(capsys.readouterr().out)
    script = f"source code; COMP_WORDS=(glr-dist {' '.join(words)}); COMP_CWORD={len(words)}; _glr_dist 2>/dev/null; "
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == expected


@pytest.mark.process
@pytest.mark.parametrize(("words", "expected"), COMPLETED, ids=str)
def test_fish_completes(tmp_path, words, expected, capsys):
    if (fish := shutil.which("fish")) is None:
        pytest.skip("needs fish")
    cli.main(["completion", "fish"])
    (tmp_path / "code").write_text(capsys.readouterr().out)
    script = f"source code; complete -C 'glr-dist {' '.join(words)}'"
    done = subprocess.run([fish, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expected


# ---------------------------------------------------------------- errors


def error_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Returns the one line of a command that must fail. An escaping exception would be a traceback."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        code = end.code
    captured = capsys.readouterr()
    assert code == 2, captured
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("glr-dist")
    return lines[0]


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
    "exact head, 0-1 loss": (["estimator.exact_head=true", "training.loss=zero_one"], ["estimator.exact_head"]),
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
