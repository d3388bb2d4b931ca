"""Servers that answer slowly or without end: one deadline for all their answers together."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tracking.uploaded import tracked_run

from glr_dist import cli, tracking
from glr_dist.tracking import follower, patience
from glr_dist.tracking.patience import Patience

RUN = {"info": {"run_id": "r1", "experiment_id": "7", "status": "RUNNING", "lifecycle_stage": "active"}}
ANSWERS = {
    "experiments/get-by-name": {"experiment": {"experiment_id": "7", "name": "x", "lifecycle_stage": "active"}},
    "runs/create": {"run": RUN},
    "runs/get": {"run": RUN},
}


class Stub:
    """A server that accepts everything.

    Attributes:
        delay: seconds before each answer.
        endless: whether the body of an answer never ends.
        requests: the paths that were asked for.
        sent: bytes of endless bodies.
    """

    def __init__(self) -> None:
        self.delay, self.endless, self.requests, self.sent = 0.0, False, [], 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("mlflow/")[2].partition("?")[0]
                stub.requests.append(path)
                time.sleep(stub.delay)
                body = json.dumps(ANSWERS.get(path, {})).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(2 * 2**30 if stub.endless else len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                    while stub.endless and stub.sent < 2 * 2**30:
                        self.wfile.write(b" " * 2**20)
                        stub.sent += 2**20
                except OSError:  # the client has had enough
                    pass

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stub(monkeypatch) -> Iterator[Stub]:
    monkeypatch.setattr(follower, "_PATIENCE", 2.0)  # 5 seconds for users
    stub = Stub()
    yield stub
    stub.close()


@pytest.mark.process
def test_a_slow_server_holds_the_end_of_a_run_for_one_deadline(stub, tiny, tmp_path, capsys):
    assert vars(follower)["_PATIENCE"] <= 5
    stub.delay = 0.5
    config = tiny("training.epochs=1", f"tracking={{kind: mlflow, uri: '{stub.uri}'}}")
    started = time.monotonic()
    with tracking.tracked(config, tracked_folder(config, tmp_path)):
        ended = time.monotonic()
    assert time.monotonic() - ended < 2.0 + 1.0
    assert time.monotonic() - started < 60
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow has not received all of the run (the server is slow)")
    assert len(stub.requests) <= 2.0 / 0.5 + 2
    done = len(stub.requests)
    time.sleep(1.2)
    assert len(stub.requests) <= done + 1  # the request that was on its way


def tracked_folder(config, tmp_path):
    """Returns the folder of a finished run that nothing has tracked."""
    from glr_dist.training.trainer import Trainer

    Trainer(config, tmp_path / "run").run()
    return tmp_path / "run"


@pytest.mark.process
def test_an_answer_without_end_is_not_read(stub, tiny, tmp_path, capsys):
    stub.endless = True
    tracked_run(tiny("training.epochs=1", f"tracking={{kind: mlflow, uri: '{stub.uri}'}}"), tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow has not received all of the run (")
    assert cli.main(["sync", str(tmp_path / "run")]) == 2
    assert "an answer of more than 64 MiB" in capsys.readouterr().err
    assert stub.sent < 10 * 80 * 2**20


@pytest.mark.process
def test_the_address_of_a_run_opens_among_the_training_runs(stub, tiny_yaml, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(follower, "_PATIENCE", 30.0)
    secret = stub.uri.replace("://", "://me:hush-hush@")
    options = ["training.epochs=1", "tracking.kind=mlflow", f"tracking.uri={secret}"]
    assert cli.main(["train", str(tiny_yaml), "--out", str(tmp_path / "run"), *options]) == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if line.startswith("page")]
    assert line.split()[1] == f"{stub.uri}/#/experiments/7/runs/r1?workflowType=machine_learning"
    assert "hush" not in said.out + said.err


def test_local_work_does_not_count_as_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    waiting = Patience()
    assert not waiting.is_over
    with waiting.local_work():
        now[0] += 50  # before the start
        waiting.start(5.0)
        now[0] += 20
        assert not waiting.is_over
    now[0] += 4
    assert not waiting.is_over
    with waiting.local_work():
        now[0] += 30
    assert not waiting.is_over
    now[0] += 2
    assert waiting.is_over
    waiting.start(5.0)
    with waiting.local_work():
        now[0] += 61
        assert waiting.is_over  # local work has a limit of its own
