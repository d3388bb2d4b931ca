"""The folders that commands write their results to."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from cli.error_lines import error_line

from glr_dist import cli
from glr_dist.claims import claim
from glr_dist.cli.arguments import folder
from glr_dist.errors import ClusterError

TIMEOUT = 300  # seconds after which a process is taken to hang


@pytest.mark.long
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


@pytest.fixture
def no_cluster(monkeypatch) -> None:
    """No cluster can be joined."""
    from glr_dist.execution import cluster, pool

    def refuse(*_: object) -> bool:
        raise ClusterError("RAY_ADDRESS: the cluster at h:1 cannot be joined")

    for module in (pool, cluster):
        monkeypatch.setattr(module, "connect", refuse)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["execution.kind=layers"],
        ["execution.kind=layers", "tracking.kind=mlflow", "tracking.uri=http://127.0.0.1:9"],
        ["execution.kind=layers", "model.weights=weights"],
        ["training.optimizer.lr=1e30", "training.loss=cross_entropy", "model.activation=relu"],
    ],
    ids=["layers", "tracked", "warm start", "not finite"],
)
@pytest.mark.usefixtures("no_cluster")
def test_an_error_before_the_first_epoch_leaves_no_folder(tiny_yaml, tmp_path, monkeypatch, capsys, overrides):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(tiny_yaml), "training.epochs=1", "--out", "weights"]) == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").touch()
    before = sorted(tmp_path.rglob("*"))
    for out in ([], ["--out", "new"], ["--out", "a/b/new"], ["--out", "empty"], ["--out", "new", "--resume"]):
        assert cli.main(["train", str(tiny_yaml), *overrides, *out]) == 2, out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_an_error_leaves_the_folder_of_a_run_as_it_was(tiny_yaml, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", str(tiny_yaml), "--out", str(out)]) == 0
    (out / "checkpoints" / "epoch-00003.pt").unlink()
    before = sorted(out.rglob("*"))
    capsys.readouterr()
    line = error_line(capsys, "train", "--out", out, "execution.kind=layers", "--resume")
    assert line.endswith(f"cannot be joined; stopped after epoch 2; continue with --resume --out {out}")
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "place", "line"),
    [
        ("train", "glr_dist.training.train.trainer_of", "stopped before the run began"),
        ("tune", "glr_dist.tuning.search.tune", "stopped before the search began"),
    ],
)
def test_a_command_that_is_interrupted_before_it_begins_does_not_advise_to_resume(
    tiny_yaml, tmp_path, monkeypatch, capsys, command, place, line
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    if command == "tune":
        tiny_yaml.write_text(f"{tiny_yaml.read_text()}tune: {{space: {{seed: {{choice: [1, 2]}}}}}}")
    assert cli.main([command, str(tiny_yaml), "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == f"{line}\n"
    assert not (tmp_path / "run").exists()


def test_a_reader_that_goes_before_the_first_epoch_leaves_no_folder(start, tiny_yaml, tmp_path):
    process = start("train", tiny_yaml, "--out", tmp_path / "run")
    assert process.stdout.readline().startswith("results")
    process.stdout.close()
    assert process.wait(TIMEOUT) == 141
    process.stderr.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.process
@pytest.mark.parametrize(("command", "last"), [("train", "parameters"), ("tune", "trials")])
def test_a_command_that_is_interrupted_while_it_imports_torch_says_so(start, tiny_yaml, tmp_path, command, last):
    if command == "tune":
        tiny_yaml.write_text(f"{tiny_yaml.read_text()}tune: {{space: {{seed: {{choice: [1, 2]}}}}}}")
    process = start(command, tiny_yaml, "--out", tmp_path / "run")
    assert any(line.startswith(last) for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert errors in ("stopped before the run began\n", "stopped before the search began\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_is_interrupted_in_its_first_epoch_can_be_resumed(tiny_yaml, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("glr_dist.training.trainer.Trainer._run_epoch", interrupted)
        assert cli.main(["train", str(tiny_yaml), "--out", str(out)]) == 130
    assert f"stopped after epoch 0; continue with --resume --out {out}" in capsys.readouterr().err
    assert cli.main(["train", "--out", str(out), "--resume"]) == 0


def must_not_run(*_: object, **__: object) -> None:
    pytest.fail("this comes after the check")


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1", "ray://h:1"])
def test_a_wrong_address_is_refused_before_anything_slow(tiny_yaml, tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", address)
    (path := tmp_path / "search.yaml").write_text(
        f"{tiny_yaml.read_text()}tune: {{space: {{seed: {{choice: [1, 2]}}}}}}"
    )
    monkeypatch.setattr("glr_dist.training.train.trainer_of", must_not_run)
    monkeypatch.setattr("glr_dist.tuning.search._train_surrogate", must_not_run)
    for words in (["train", tiny_yaml, "execution.kind=layers"], ["train", tiny_yaml, "execution.kind=replicas"]):
        assert "RAY_ADDRESS: " in error_line(capsys, *words)
    assert "RAY_ADDRESS: " in error_line(capsys, "tune", path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.yaml", "tiny.yaml"]


@pytest.mark.slow
def test_a_run_that_needs_no_cluster_asks_for_none(tiny_yaml, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert cli.main(["train", str(tiny_yaml), "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--resume", "execution.kind=layers"]) == 0  # finished


@pytest.mark.process
@pytest.mark.parametrize("command", ["train", pytest.param("tune", marks=pytest.mark.long)])
def test_a_command_that_cannot_join_its_cluster_leaves_no_folder(start, tiny_yaml, tmp_path, command):
    search = "tune: {space: {noise.scale: {loguniform: [0.1, 1]}}, trials: 3, algorithm: random}\n"
    (path := tmp_path / "search.yaml").write_text(tiny_yaml.read_text() + search)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    words = [tiny_yaml, "execution.kind=layers"] if command == "train" else [path]
    environment = {**os.environ, "RAY_ADDRESS": address}
    process = start(command, *words, "--out", tmp_path / "out", env=environment)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"glr-dist: RAY_ADDRESS: the cluster at {address} cannot be joined (")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
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
