"""The loss of a cluster that a run has joined: of its head, or of the raylet on this machine."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from glr_dist.execution import joined
from glr_dist.execution.joined import Gcs, process_at, raylet_death
from glr_dist.runs import RunFolder
from glr_dist.training import checkpoint

TIMEOUT = 120  # seconds after which a command is taken to hang


def outcomes(monkeypatch, *results: type[OSError] | None) -> Gcs:
    """Returns a watch of a GCS whose connections end with these errors, None for none, and then with the last one."""
    monkeypatch.setattr(joined, "_INTERVAL", 0.0)
    monkeypatch.setattr(joined, "_RETRY", 1e-9)
    left = list(results)

    def connect(place: tuple[str, int], timeout: float) -> socket.socket:
        assert place == ("h", 1)
        assert timeout <= 1
        result = left.pop(0) if len(left) > 1 else left[0]
        if result is not None:
            raise result
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    return Gcs("h:1")


def test_a_gcs_that_refuses_several_connections_is_dead(monkeypatch):
    gcs = outcomes(monkeypatch, None, None, ConnectionRefusedError)
    found = [gcs.death() for _ in range(8)]
    assert found[:6] == [None] * 6
    assert found[6] == found[7] == "the head of the cluster at h:1 is gone (connection refused 5 times)"


@pytest.mark.parametrize(
    "results",
    [
        [None],
        [TimeoutError],
        [OSError],
        [*[ConnectionRefusedError] * 4, None] * 3 + [None],
        [*[ConnectionRefusedError] * 4, TimeoutError] * 3 + [None],
    ],
    ids=["alive", "busy", "unreachable", "restarted", "restarted and busy"],
)
def test_a_gcs_that_is_busy_or_away_for_a_moment_is_not_dead(monkeypatch, results):
    gcs = outcomes(monkeypatch, *results)
    assert [gcs.death() for _ in range(20)] == [None] * 20


@pytest.mark.parametrize(("seconds", "limit"), [("10", 20), ("1", 5), ("", 5), ("soon", 5)])
def test_where_ray_waits_for_a_restarted_gcs_so_does_the_watch(monkeypatch, seconds, limit):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", seconds)
    assert Gcs("h:1")._limit == limit


def test_connections_are_not_made_more_often_than_needed(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        gcs = Gcs(f"127.0.0.1:{server.getsockname()[1]}")
        made: list[object] = []
        connect = socket.create_connection
        monkeypatch.setattr(socket, "create_connection", lambda *given: (made.append(given), connect(*given))[1])
        assert [gcs.death() for _ in range(100)] == [None] * 100
    assert len(made) == 1


def test_the_end_of_a_process_that_is_not_a_child_is_noticed():
    process = subprocess.Popen(["sleep", "60"])
    death = raylet_death(process.pid)
    assert death() is None
    process.kill()
    process.wait()
    assert death() == "Ray's raylet process on this machine has ended"
    assert raylet_death(process.pid)() is None  # too late to watch it


def test_the_process_at_the_other_end_of_a_socket_is_found(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        assert process_at(path) is None
        client.connect(path)
        with server.accept()[0]:
            assert process_at(path) == os.getpid()
            assert process_at(str(tmp_path / "other")) is None


# ---------------------------------------------------------------- a head in other processes


class Head:
    """A running head of two CPUs.

    Attributes:
        process: `ray start`, which ends all of them if one ends, unless it is suspended.
        parts: the other processes by name.
        environment: for runs that join it.
    """

    def __init__(self, process: psutil.Process, environment: dict[str, str]) -> None:
        self.process, self.environment = process, environment
        self.parts = {child.name(): child for child in process.children()}


@pytest.fixture
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="glr"))  # short: paths of sockets have 107 characters at most
    (folder / "home").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["HOME"] = str(folder / "home")
    options = f"--head --block --num-cpus 2 --include-dashboard=false --port {address.rpartition(':')[2]}"
    options += f" --node-ip-address 127.0.0.1 --disable-usage-stats --temp-dir {folder}/ray"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options.split()]
    with (folder / "head.log").open("wb") as log:
        process = psutil.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + TIMEOUT
        while "--block" not in (folder / "head.log").read_text():  # it says so once all is running
            assert process.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        yield Head(process, {**environment, "RAY_ADDRESS": address})
    finally:
        for left in psutil.process_iter(["environ"]):
            if (left.info["environ"] or {}).get("HOME") == environment["HOME"]:
                left.kill()
        process.wait(TIMEOUT)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def train(start, head, tiny_yaml, tmp_path) -> Callable[[str], subprocess.Popen[str]]:
    """`train(kind)`: a long run on two actors of the head that has finished its second epoch."""

    def begin(kind: str) -> subprocess.Popen[str]:
        words = (f"execution.kind={kind}", "execution.actors=2", "training.epochs=4000", "estimator.example_block=256")
        process = start("train", tiny_yaml, *words, "--out", tmp_path / "run", env=head.environment)
        assert process.stdout is not None
        assert any(line.startswith("epoch 2/") for line in process.stdout), process.communicate()[1]
        return process

    return begin


DEATHS = {
    "gcs_server": r"the head of the cluster at \S+ is gone \(connection refused 5 times\)",
    "raylet": "Ray's raylet process on this machine has ended",
}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize(
    ("kind", "victim"),
    [
        ("layers", "gcs_server"),
        ("layers", "raylet"),
        ("replicas", "gcs_server"),
        ("replicas", "raylet"),
    ],
)
def test_a_run_that_loses_its_cluster_ends_with_one_line_and_keeps_its_epochs(head, train, tmp_path, kind, victim):
    if not hasattr(os, "pidfd_open"):
        pytest.skip("the raylet is watched on Linux only")
    process = train(kind)
    head.process.suspend()  # it would end the others too
    sent = time.monotonic()
    head.parts[victim].kill()
    _, error = process.communicate(timeout=TIMEOUT)
    assert time.monotonic() - sent < 30  # Ray's own limit is a minute
    assert process.returncode == 2
    line = error.splitlines()[-1]
    out = tmp_path / "run"
    told = re.fullmatch(
        rf"glr-dist: {DEATHS[victim]}; stopped after epoch (\d+); continue with --resume --out {out}", line
    )
    assert told is not None, error
    done = checkpoint.newest(out / "checkpoints")[1]["epoch"]
    assert 2 <= int(told[1]) <= done  # a replica may finish an epoch before it notices
    assert "Traceback" not in error


@pytest.mark.ray
@pytest.mark.long
def test_a_head_that_is_frozen_for_a_while_does_not_end_a_run(head, train, tmp_path):
    process = train("layers")
    drained = threading.Thread(target=lambda: process.stdout.read())
    drained.start()
    head.parts["gcs_server"].suspend()
    time.sleep(10)
    assert process.poll() is None
    head.parts["gcs_server"].resume()
    before = RunFolder(tmp_path / "run").last_epoch()
    time.sleep(3)
    assert process.poll() is None
    assert RunFolder(tmp_path / "run").last_epoch() > before
    process.terminate()
    assert process.wait(TIMEOUT) == 130
    drained.join()
