"""The folders that commands write their results to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli.error_lines import error_line

from glr_dist import cli
from glr_dist.claims import claim
from glr_dist.cli.arguments import folder

TIMEOUT = 300  # seconds after which a process is taken to hang


@pytest.mark.process
def test_trainings_that_start_at_the_same_time_all_run(start, tiny_yaml, tmp_path):
    processes = [start("train", tiny_yaml, "training.epochs=1", f"seed={seed}", cwd=tmp_path) for seed in range(2)]
    ended = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, ended, strict=True)] == [
        (0, "")
    ] * 2
    folders = [Path(said.splitlines()[0].split()[1]) for said, _ in ended]
    assert sorted(folder.name for folder in folders) == ["tiny-1", "tiny-2"]
    seeds = [json.loads((folder / "summary.json").read_text())["seed"] for folder in folders]
    assert seeds == [0, 1]


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
