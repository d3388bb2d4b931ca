"""Real Ray jobs on a head of their own: done, failed, stopped; the token that protects them; nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from glr_dist.training import checkpoint

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[1]
RAY = (sys.executable, "-m", "ray.scripts.scripts")
TINY = ("configs/digits.yaml", "model.hidden=[8]", "estimator.copies=8", "execution.device=cpu")
TIMEOUT = 120  # seconds after which a command is taken to hang


@dataclass(frozen=True)
class Head:
    """A running head. Its home folder is its own: what Ray keeps there is neither read from nor left in a person's."""

    process: subprocess.Popen[bytes]
    folder: Path
    address: str
    environment: dict[str, str]

    def ray(self, *arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Runs `ray …` in a shell that follows the documented remedy; output and errors together."""
        return _ray(*arguments, environment={**self.environment, "RAY_AUTH_MODE": "token"}, folder=folder)

    def submit(
        self, name: str, *entrypoint: object, options: tuple[str, ...] = (), folder: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit` as the README has it, from a checkout or from a folder of the user's own."""
        common = ("--address", self.address, "--working-dir", ".", "--runtime-env", ROOT / "jobs" / "runtime_env.yaml")
        return self.ray("job", "submit", *common, "--submission-id", name, *options, "--", *entrypoint, folder=folder)

    def stop(self, name: str) -> None:
        """Runs `ray job stop`, which waits for the end of the job."""
        stopped = self.ray("job", "stop", "--address", self.address, name)
        assert stopped.returncode == 0, stopped.stdout

    def ended(self, name: str) -> tuple[str, str]:
        """Status of a job and the message beside it."""
        found = self._get(f"/api/jobs/{name}")
        return found["status"], found["message"]

    def log(self, name: str) -> str:
        """Output of a job."""
        return str(self._get(f"/api/jobs/{name}/logs")["logs"])

    def _get(self, path: str) -> dict[str, Any]:
        """Asks the head over HTTP, where `ray job …` would take seconds to import Ray."""
        token = (Path(self.environment["HOME"]) / ".ray" / "auth_token").read_text().strip()
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def _ray(*arguments: object, environment: dict[str, str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RAY, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        cwd=folder,
        env=environment,
        check=False,
    )


def _wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f"the head ended before {what}"
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _descendants(home: Path) -> list[psutil.Process]:
    """All processes that inherited the home folder, also those whose parent is gone."""
    return [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("HOME") == str(home)]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="glr"))  # short: Ray's sockets lie in it, a socket's path has 107 characters
    (home := folder / "home").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    # The trap: an innocent script leaves a token in the home folder; a head that starts there later asks for it.
    script = "import ray, sys; ray.init(num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(folder / "local")], env=environment, check=True, timeout=TIMEOUT)
    assert (home / ".ray" / "auth_token").exists()

    port, dashboard, agent, client = _free_ports(4)
    ports = f"--port {port} --dashboard-port {dashboard} --dashboard-agent-listen-port {agent}"
    ports += f" --ray-client-server-port {client} --min-worker-port 0 --max-worker-port 0"
    start = f"start --head --block --num-cpus 2 --dashboard-host 127.0.0.1 {ports} --disable-usage-stats --temp-dir"
    log = (folder / "head.log").open("wb")
    process = subprocess.Popen([*RAY, *start.split(), str(folder / "ray")], env=environment, stdout=log, stderr=log)
    try:
        _wait_until(lambda: _answers(dashboard), process, "the dashboard answers")
        yield Head(process, folder, f"http://127.0.0.1:{dashboard}", environment)
        assert process.pid in [p.pid for p in _descendants(home)]
        process.terminate()
        process.wait(TIMEOUT)
        _, left = psutil.wait_procs(_descendants(home), timeout=15)
        assert not left, [" ".join(p.cmdline()) for p in left]
    finally:
        for left_over in _descendants(home):
            left_over.kill()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_the_head_asks_for_the_token_that_a_local_run_left_and_the_remedy_gives_it(head):
    refused = _ray("job", "list", "--address", head.address, environment=head.environment)
    assert refused.returncode != 0
    assert "AuthenticationError" in refused.stdout
    assert "RAY_AUTH_MODE" in refused.stdout
    given = head.ray("job", "list", "--address", head.address)
    assert given.returncode == 0, given.stdout


KINDS = {"inline": (), "layers": ("execution.kind=layers", "execution.actors=2")}
EACH_KIND = pytest.mark.parametrize("kind", ["inline", pytest.param("layers", marks=pytest.mark.long)])


@EACH_KIND
def test_a_job_trains_and_its_results_outlive_it(head, kind):
    name, out = f"trains-{kind}", head.folder / f"digits-{kind}"
    done = head.submit(name, "python", "jobs/train.py", *TINY, *KINDS[kind], "training.epochs=2", "--out", out)
    assert done.returncode == 0, done.stdout
    assert head.ended(name)[0] == "SUCCEEDED"
    assert re.findall(r"epoch (\d)/2 ", head.log(name)) == ["1", "2"]
    assert json.loads((out / "summary.json").read_text())["epochs"] == 2
    # Ray ran it in a copy that holds what runs and nothing that jobs/runtime_env.yaml leaves out.
    (copy,) = head.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert {"configs", "glr_dist", "jobs"} <= {path.name for path in copy.iterdir()}
    left_out = [copy / name for name in ("tests", "runs", "data", ".git", ".ci")]
    assert not [path for path in left_out if path.is_file() or any(path.glob("*"))]  # Ray keeps empty folders


OWN = {
    "mynet.py": """
from torch import nn


def net(width: int = 8):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.Sigmoid(), nn.Linear(width, 3))


def wrong(outputs, targets):
    return (outputs.argmax(-1) != targets).float()
""",
    "mydata.py": """
import numpy as np


def clouds(examples: int = 96):
    draws = np.random.default_rng(0)
    y = draws.integers(0, 3, examples)
    return {"train": (draws.normal(size=(examples, 6)).astype("float32") + y[:, None], y)}
""",
    "my.yaml": """
data: {name: "mydata:clouds", examples: 192}
model: {name: "mynet:net", width: 4}
estimator: {copies: 8}
training: {epochs: 2, batch_size: 32, loss: "mynet:wrong"}
execution: {device: cpu}
""",
}


@pytest.mark.long
def test_a_job_trains_a_users_own_network_on_own_data_from_a_folder_of_its_own(head):
    (own := head.folder / "own").mkdir()
    for name, text in OWN.items():
        (own / name).write_text(text)
    digests = set()
    for kind, settings in KINDS.items():
        out = head.folder / f"own-{kind}"
        command = ("python", "-m", "glr_dist", "train", "my.yaml", *settings, "--out", out)
        done = head.submit(f"own-{kind}", *command, folder=own)
        assert done.returncode == 0, done.stdout
        digests.add(json.loads((out / "summary.json").read_text())["params_sha256"])
        lost = head.submit(f"own-lost-{kind}", *command[:-2], folder=own)
        assert lost.returncode == 1
        assert "glr-dist: --out: a Ray job runs in a temporary copy" in head.log(f"own-lost-{kind}")
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        pytest.param(
            "config",
            (*TINY, "noise.scale=-1", "--out", "/nowhere"),
            "glr-dist: noise.scale: ",
            id="a bad configuration",
        ),
        pytest.param(
            "lost", (*TINY, "--out", "runs/lost"), "glr-dist: --out: ", id="a relative folder", marks=pytest.mark.long
        ),
    ],
)
def test_an_error_fails_the_job_with_one_line(head, name, arguments, said):
    done = head.submit(name, "python", "jobs/train.py", *arguments)
    assert done.returncode == 1
    status, message = head.ended(name)
    assert status == "FAILED"
    assert "exit code 2" in message
    log = head.log(name).split("Running entrypoint", 1)[1].splitlines()
    assert next(line for line in log[1:] if line.strip()).startswith(said)
    assert not any("Traceback" in line for line in log)


@pytest.mark.long
def test_the_runtime_environment_reaches_the_job(head):
    given = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())["env_vars"]
    assert head.submit("environment", "env").returncode == 0
    assert {f"{key}={value}" for key, value in given.items()} <= set(head.log("environment").splitlines())


@pytest.mark.long
@EACH_KIND
def test_a_stopped_job_says_where_and_keeps_its_last_epoch(head, kind):
    name, out = f"stops-{kind}", head.folder / f"stopped-{kind}"
    long = ("python", "jobs/train.py", *TINY, *KINDS[kind], "training.epochs=100000", "--out", out)
    submitted = head.submit(name, *long, options=("--no-wait",))
    assert submitted.returncode == 0, submitted.stdout
    _wait_until(lambda: len(checkpoint.listed(out / "checkpoints")) >= 2, head.process, "the second checkpoint")
    head.stop(name)
    assert head.ended(name)[0] == "STOPPED"
    epoch = re.search(r"^stopped after epoch (\d+); continue with --resume --out (.+)$", head.log(name), re.M)
    assert epoch is not None
    assert epoch[2] == str(out)
    _, state, damaged = checkpoint.newest(out / "checkpoints", "cpu")
    assert (state["epoch"], damaged) == (int(epoch[1]), [])
