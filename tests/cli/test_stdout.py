"""Output that fails: a closed pipe, a full disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli.error_lines import error_line

TIMEOUT = 300  # seconds after which a process is taken to hang


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
@pytest.mark.parametrize(
    "backend",
    [
        "module://matplotlib_inline.backend_inline",
        *(pytest.param(backend, marks=pytest.mark.long) for backend in ("nonsense", "tkagg")),
    ],
)
def test_a_picture_that_cannot_be_drawn_costs_nothing_but_a_warning(python, tiny_yaml, tmp_path, backend):
    code = "import sys; from glr_dist.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "train", tiny_yaml, "training.epochs=1", "--out", tmp_path / "run", MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"test_accuracy        {summary['test_accuracy']:.4g}" in done.stdout
    assert (tmp_path / "run" / "learning_curve.png").exists() or done.stderr.startswith("warning: ")
