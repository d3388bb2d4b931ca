"""Joins a cluster or starts a local Ray: addresses, time limits, signals, and files left behind."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from glr_dist.errors import ClusterError
from glr_dist.execution import address
from glr_dist.execution.address import probe, ray_address
from glr_dist.execution.cluster import connect


@pytest.fixture
def silent(monkeypatch) -> Iterator[socket.socket]:
    """A server that accepts connections and never answers, at RAY_ADDRESS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        yield server


@pytest.fixture
def disconnected(monkeypatch) -> None:
    """`connect` does not know the session's Ray, which an earlier test may have started in this process."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def unused() -> str:
    """Returns an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("value", "expected"), [(None, None), ("", None), ("  ", None), (" h:1 ", "h:1")])
def test_a_blank_address_counts_as_unset(monkeypatch, value, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_ADDRESS", value)
    assert ray_address() == expected


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nonsense", "is not an address"),
        ("127.0.0.1", "is not an address"),
        ("127.0.0.1:port", "is not an address"),
        ("127.0.0.1:99999", "is not an address"),
        ("http://127.0.0.1:8265", "is not an address"),
        ("ray://127.0.0.1:10001", "Ray Client"),
        ("[::1]:1", "cannot be joined"),
        ("no.such.host.invalid:6379", "cannot be joined"),
        pytest.param(unused(), "refused", id="an unused port"),  # parallel workers collect the same names
    ],
)
@pytest.mark.usefixtures("disconnected")
def test_a_wrong_address_is_refused_at_once_in_one_line(monkeypatch, place, words):
    monkeypatch.setenv("RAY_ADDRESS", place)
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: ") as caught:
        connect()
    assert time.monotonic() - started < 10
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)], ids=lambda number: number.name
)
def test_a_signal_ends_the_wait_for_a_silent_cluster_within_two_seconds(start, tiny_yaml, tmp_path, silent, number):
    def seconds() -> float:
        """Seconds from the signal to the last line; on a busy machine, the interpreter needs more of them to exit."""
        process = start("train", tiny_yaml, "execution.kind=layers", "--out", tmp_path / "run", "--resume")
        silent.settimeout(120)
        with silent.accept()[0]:
            assert process.poll() is None
            sent = time.monotonic()
            process.send_signal(number)
            assert process.stderr is not None
            while "stopped after epoch" not in (line := process.stderr.readline()):
                assert line, "it ended without its last line"
            passed = time.monotonic() - sent
            _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in error
        return passed

    assert any(seconds() < 2 for _ in range(3))  # others may use the machine during the first ones


@pytest.mark.usefixtures("disconnected")
def test_connect_gives_up_on_a_server_that_never_answers(monkeypatch, silent):
    monkeypatch.setattr(address, "_ANSWER_TIMEOUT", 0.2)
    with pytest.raises(ClusterError, match=r"cannot be joined \(no answer\)"):
        connect()


@pytest.mark.ray
def test_a_cluster_answers_the_probe(local_ray):
    probe(ray.get_runtime_context().gcs_address)
    with pytest.raises(ClusterError):
        probe(unused())


LOCAL = """
import json, os, signal, threading, time
from glr_dist.execution.cluster import connected
import ray

folders, heard = [], []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
for _ in range(2):
    with connected(1) as own:
        assert own
        assert "RAY_AUTH_TOKEN" not in os.environ
        folders.append(ray._private.worker._global_node.get_session_dir_path())
        assert ray.get(ray.put(3)) == 3
        os.kill(os.getpid(), signal.SIGTERM)  # Ray's core would abort
        time.sleep(0.1)
        assert heard == [signal.SIGTERM] * len(folders)
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(10)
        assert not thread.is_alive(), thread
print(json.dumps([folders, [os.path.exists(folder) for folder in folders]]))
"""


@pytest.mark.long
@pytest.mark.ray
def test_a_local_ray_works_under_a_long_tmpdir_and_leaves_no_folder(python, tmp_path):
    long = tmp_path / ("x" * 75)
    long.mkdir()
    done = python(LOCAL, TMPDIR=str(long))
    assert done.returncode == 0, done.stderr
    folders, exist = json.loads(done.stdout.splitlines()[-1])
    assert len(set(folders)) == 2
    assert exist == [False, False]
    assert not any(Path(folder).parent.exists() for folder in folders)


LISTENING = """
import json, os, sys
import psutil
import ray
from glr_dist.execution.cluster import connected

@ray.remote(num_cpus=1)
class Actor:
    def token(self):
        return os.environ.get("RAY_AUTH_MODE"), len(os.environ.get("RAY_AUTH_TOKEN", ""))

with connected(1):
    actor = Actor.remote()
    token = ray.get(actor.token.remote())
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    open_ = [each for process in processes for each in process.net_connections() if each.status == "LISTEN"]
    print(json.dumps([token, [each.laddr.ip for each in open_]]))
"""


@pytest.mark.long
@pytest.mark.ray
def test_a_local_ray_listens_on_loopback_only_and_requires_a_token(python, tmp_path):
    others = {each.address for name in psutil.net_if_addrs() for each in psutil.net_if_addrs()[name]} - {"127.0.0.1"}
    if not others:
        pytest.skip("this machine has the loopback interface only")
    done = python(LISTENING, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    token, listening = json.loads(done.stdout.splitlines()[-1])
    assert len(listening) > 5
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert token == ["token", 64]
    assert not (tmp_path / ".ray" / "auth_token").exists()
    assert done.stderr.count("it listens on 127.0.0.1") == 1
