"""A server that is down at times: every point is uploaded once, and no run waits."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracking.uploaded import assert_complete

from glr_dist import tracking
from glr_dist.errors import TrackingError
from glr_dist.tracking import follower
from glr_dist.tracking.state import State
from glr_dist.training.trainer import Trainer

TIMEOUT = 120  # seconds after which a server counts as hanging


class Server:
    """An MLflow server on SQLite, as a child process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self._artifacts = folder / "artifacts"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self._artifacts)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, start_new_session=True, **quiet)

    def await_answer(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path, database) -> Iterator[Server]:
    server = Server(tmp_path)
    shutil.copy(database.removeprefix("sqlite:///"), server.database)  # with its tables
    yield server
    server.kill()


def with_pauses(trainer: Trainer, after_epoch: Callable[[int], None]) -> list[float]:
    """Makes the trainer call a function after each epoch; returns the seconds between steps, without those calls."""
    report, norms, gaps, last = trainer._report, trainer._square_norms, [], [time.monotonic()]

    def reported(progress: object, record: dict) -> None:
        report(progress, record)
        before = time.monotonic()
        after_epoch(record["epoch"])
        last[0] += time.monotonic() - before

    def stepped(squares: dict) -> None:
        gaps.append(time.monotonic() - last[0])
        last[0] = time.monotonic()
        norms(squares)

    trainer._report, trainer._square_norms = reported, stepped
    return gaps


@pytest.mark.process
@pytest.mark.long
def test_a_server_that_is_down_at_first_or_for_a_while(server, tiny, tmp_path, capfd, monkeypatch):
    secret = server.uri.replace("://", "://me:hush-hush@")
    # A server that was never started: a warning, no wait, nothing lost.
    config = tiny(
        "training.epochs=2", f"tracking={{kind: mlflow, uri: '{secret}', experiment: away, register_as: early}}"
    )
    early = tmp_path / "early"
    trainer = Trainer(config, early)
    with tracking.tracked(config, early):
        trainer.run()
        time.sleep(2)  # the first attempt has failed
        ended = time.monotonic()
    assert time.monotonic() - ended < 3
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert f"glr-dist sync {early}" in line
    with pytest.raises(TrackingError) as caught:
        tracking.sync(early)
    # A run that continues later neither waits nor warns.
    with pytest.raises(tracking.Paused), tracking.tracked(config, early):
        time.sleep(2)
        ended = time.monotonic()
        raise tracking.Paused
    assert time.monotonic() - ended < 0.5
    assert capfd.readouterr().err == ""
    with tracking.tracked(config, early):
        pass
    server.start()
    server.await_answer()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    tracking.sync(early)
    client = MlflowClient(server.uri)
    assert_complete(client, early, epochs=2)
    assert client.get_run(State.read(early).run_id).info.status == "FINISHED"
    (version,) = client.search_model_versions("name = 'early'")
    assert version.run_id == State.read(early).run_id

    # A server that is killed in the middle of a run, and started again.
    monkeypatch.setattr(follower, "_PATIENCE", 60.0)
    monkeypatch.setattr(follower, "_ATTEMPTS", 100)
    epochs, out = 60, tmp_path / "run"
    config = tiny(f"training.epochs={epochs}", f"tracking={{kind: mlflow, uri: '{secret}', experiment: away}}")
    trainer = Trainer(config, out)

    def after(epoch: int) -> None:
        time.sleep(0.1)
        if epoch == 20:
            assert State.read(out).lines["metrics.jsonl"] > 0  # some of it has been uploaded
            server.kill()
        if epoch == 40:
            server.start()
        if epoch == epochs - 1:
            server.await_answer()

    gaps = with_pauses(trainer, after)
    with tracking.tracked(config, out):
        trainer.run()
    assert max(gaps) < 1
    assert len(gaps) == 3 * epochs
    assert_complete(client, out, epochs=epochs)
    assert client.get_run(State.read(out).run_id).info.status == "FINISHED"

    # The password is only in the memory of this process.
    printed = capfd.readouterr()
    texts = [said.out, said.err, printed.out, printed.err, str(caught.value)]
    server.kill()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert server.database in files
    assert out / "tracking.json" in files
    assert not [text for text in texts if "hush" in text]
    assert not [path for path in files if b"hush" in path.read_bytes()]
