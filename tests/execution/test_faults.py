"""Runs in which things go wrong end with the parameters of a quiet run, and leave nothing behind."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest
import torch

import glr_dist
from execution.variants import batch, made, same
from glr_dist.execution.inline import Inline
from glr_dist.training import checkpoint

pytestmark = pytest.mark.ray

STEPS = 60


def trained(executor: object, before_step: Callable[[int], None] = lambda step: None) -> dict[str, torch.Tensor]:
    """The parameters after STEPS steps of threshold units and 0-1 loss."""
    net, (x, y) = made("conditional, three passes", executor), batch("conditional")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(STEPS):
        before_step(step)
        optimizer.zero_grad()
        net.estimate(x, y)
        optimizer.step()
    return net.state_dict()


@pytest.mark.slow
def test_twelve_deaths_and_freezes_in_one_run_change_no_bit(local_ray):
    from glr_dist.execution.layers import Layers

    rng = random.Random(0)
    blows = {step: rng.choice([signal.SIGKILL, signal.SIGSTOP]) for step in rng.sample(range(2, STEPS), 12)}
    struck = []

    with Layers(2, hang_timeout=1.5) as executor:

        def strike(step: int) -> None:
            """Kills or freezes an actor while the step is under way."""
            if step in blows:
                while not (pids := executor.pool.pids):  # none is known to be alive yet
                    list(executor.pool.run([]))
                    executor.pool._wait()
                victim = rng.choice(pids)
                struck.append(victim)
                threading.Timer(rng.random() * 0.02, os.kill, (victim, blows[step])).start()

        found = trained(executor, strike)
        restarts = executor.progress()["actor_restarts"]
    assert len(struck) == 12
    assert set(blows.values()) == {signal.SIGKILL, signal.SIGSTOP}
    # A blow that falls on an actor already struck is not another loss.
    assert 10 <= restarts <= 12
    assert same(found, trained(Inline()))


NODES = """
import sys
import ray
from ray.cluster_utils import Cluster
sys.path.insert(0, sys.argv[1])
from execution.test_faults import trained
from execution.variants import same
from glr_dist.execution.inline import Inline
from glr_dist.execution.layers import Layers

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level="ERROR")
seen = []

def wait(executor, actors):
    while len(executor.pool.pids) < actors:
        list(executor.pool.run([]))
        executor.pool._wait()
    seen.append(set(executor.pool.pids))

with Layers(2, hang_timeout=5) as executor:
    def change(step):
        if step == 5:
            wait(executor, 2)
            cluster.remove_node(second)
        elif step == 20:
            seen.append(set(executor.pool.pids))
            cluster.add_node(num_cpus=1)
        elif step == 30:
            wait(executor, 2)
    found = trained(executor, change)
    restarts = executor.progress()["actor_restarts"]
groups = [group["state"] for group in ray.util.placement_group_table().values()]
ray.shutdown()
cluster.shutdown()
both, one, again = seen
assert len(both) == 2 and len(one) == 1 and one < both, seen
assert len(again) == 2 and one < again and again != both, seen
assert restarts == 1, restarts
assert set(groups) == {"REMOVED"}, groups
assert same(found, trained(Inline()))
print("the same bits")
"""


@pytest.mark.slow
def test_a_node_that_goes_and_one_that_joins_change_no_bit(python):
    done = python(NODES, Path(__file__).parents[1])
    assert done.stdout.endswith("the same bits\n"), done.stderr[-2000:]


# ---------------------------------------------------------------- the command line

LONG = ("execution.kind=layers", "execution.actors=2", "training.epochs=400")


def after_epochs(process: subprocess.Popen[str], epochs: int) -> list[psutil.Process]:
    """The processes that a run has started, once so many epochs are done."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"epoch {epochs}/"):
            return psutil.Process(process.pid).children(recursive=True)
    raise AssertionError(process.communicate()[1])


def gone(processes: Iterable[psutil.Process], seconds: float) -> bool:
    """Whether processes end in time."""
    return not psutil.wait_procs(list(processes), timeout=seconds)[1]


@pytest.mark.parametrize(
    "blow", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=lambda blow: blow.name
)
def test_a_run_that_is_stopped_keeps_its_epochs_and_leaves_no_process(start, tiny_yaml, tmp_path, blow):
    out = tmp_path / "run"
    process = start("train", tiny_yaml, *LONG, "--out", out)
    children = after_epochs(process, 2)
    assert len(children) > 4  # Ray's own and the actors
    process.send_signal(blow)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after epoch" in error
    assert "Traceback" not in error
    assert gone(children, 30)
    _, state, damaged = checkpoint.newest(out / "checkpoints")
    assert state["epoch"] >= 2
    assert not damaged


@pytest.mark.slow
def test_a_run_whose_driver_is_killed_resumes_to_the_same_parameters(start, tiny_yaml, tmp_path):
    overrides = ("execution.kind=layers", "execution.actors=2", "training.epochs=60")
    killed = start("train", tiny_yaml, *overrides, "--out", tmp_path / "killed")
    children = after_epochs(killed, 5)
    killed.kill()
    killed.communicate()
    resumed = start("train", tiny_yaml, *overrides, "--out", tmp_path / "killed", "--resume")
    inline = start("train", tiny_yaml, "training.epochs=60", "--out", tmp_path / "inline")
    for process in (resumed, inline):
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("killed", "inline")]
    assert summaries[0]["params_sha256"] == summaries[1]["params_sha256"]
    assert gone(children, 120)  # Ray's agents notice the death of the rest after a minute


def test_a_finished_run_leaves_no_process_and_tells_of_its_actors(start, tiny_yaml, tmp_path):
    process = start("train", tiny_yaml, *LONG[:2], "training.epochs=30", "--out", tmp_path / "run")
    children = after_epochs(process, 1)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert gone(children, 30)
    assert "actor_busy_share" in output
    assert "actor_restarts" in output
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert record["items_per_second"] > 0
        assert len(record["actor_busy_share"]) == 2
        assert record["actor_restarts"] == 0


def test_a_request_that_has_no_place_ends_in_one_line(start, tiny_yaml, tmp_path):
    if torch.cuda.device_count() >= 3:
        pytest.skip("three GPUs have a place here")
    overrides = ("execution.kind=layers", "execution.actors=1", "execution.gpus_per_actor=3")
    process = start("train", tiny_yaml, *overrides, "--out", tmp_path / "run")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    mistake = error.splitlines()[-1]
    assert mistake.startswith("glr-dist: execution.actors: 1 of 1 CPU and 3 GPU each")
    assert "Traceback" not in error


# ---------------------------------------------------------------- the end of Ray itself


def test_a_signal_to_the_whole_group_ends_a_run_as_one_to_the_driver_does(start, tiny_yaml, tmp_path):
    """A batch system sends SIGTERM to all processes of a job."""
    process = start("train", tiny_yaml, *LONG, "--out", tmp_path / "run", start_new_session=True)
    children = after_epochs(process, 2)
    sent = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30  # Ray's own limit is a minute
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("stopped after epoch")
    assert gone(children, 15)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["layers", "replicas"])
def test_a_signal_to_every_process_of_a_job_ends_a_run_too(start, tiny_yaml, tmp_path, kind):
    """A batch system that tracks processes by control group reaches those of other sessions."""
    process = start("train", tiny_yaml, *on_two(kind), "--out", tmp_path / "run")
    children = after_epochs(process, 2)
    for each in [psutil.Process(process.pid), *children]:
        each.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("stopped after epoch")
    assert gone(children, 15)


def on_two(kind: str) -> tuple[str, ...]:
    """The overrides of a long run on two actors or replicas."""
    return f"execution.kind={kind}", "execution.actors=2", "training.epochs=4000", "estimator.example_block=256"


@pytest.mark.parametrize(
    ("kind", "victim"),
    [
        ("layers", "raylet"),
        pytest.param("layers", "gcs_server", marks=pytest.mark.slow),
        pytest.param("replicas", "raylet", marks=pytest.mark.slow),
        pytest.param("replicas", "gcs_server", marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_of_ray_ends_a_run_with_one_line_and_nothing_is_lost(start, tiny_yaml, tmp_path, kind, victim):
    out = tmp_path / "run"
    process = start("train", tiny_yaml, *on_two(kind), "--out", out)
    children = after_epochs(process, 2)
    sent = time.monotonic()
    next(child for child in children if child.name() == victim).kill()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30  # Ray's own limit is a minute
    assert process.returncode == 2
    done = checkpoint.newest(out / "checkpoints")[1]["epoch"]
    assert done >= 2
    line = error.splitlines()[-1]
    assert line.startswith(f"glr-dist: Ray's process {victim} on this machine was killed by SIGKILL; ")
    assert line.endswith(f"stopped after epoch {done}; continue with --resume --out {out}")
    assert "Traceback" not in error
    assert gone(children, 15)


BUSY = """
import sys, time
from glr_dist.execution.pool import Call, Pool

class Busy:
    def work(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(10000))

pool = Pool(Busy, (), 1)
list(pool.run([Call("work", (0,))]))
print(pool.pids[0], flush=True)
list(pool.run([Call("work", (100,))]))
"""


def test_an_actor_at_work_ends_soon_after_its_driver_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    actor = psutil.Process(int(process.stdout.readline()))
    time.sleep(1)  # its call is under way
    process.kill()
    process.communicate()
    assert gone([actor], 10)


@pytest.mark.parametrize("kind", ["layers", pytest.param("replicas", marks=pytest.mark.slow)])
def test_actors_whose_package_differs_by_one_number_are_refused(start, tiny_yaml, tmp_path, kind):
    package = Path(glr_dist.__file__).parent
    copied = shutil.copytree(package, tmp_path / "other" / "glr_dist") / "execution" / "memory.py"
    copied.write_text(copied.read_text().replace("2**30", "2**29"))
    job = json.dumps({"runtime_env": {"env_vars": {"PYTHONPATH": str(tmp_path / "other")}}})
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "RAY_JOB_CONFIG_JSON_ENV_VAR": job}
    overrides = (f"execution.kind={kind}", "execution.actors=1")
    process = start("train", tiny_yaml, *overrides, "--out", tmp_path / "run", cwd=tmp_path, env=environment)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    line = error.splitlines()[-1]
    assert re.fullmatch(
        r"glr-dist: node \S+ has other software, which may compute other results: "
        r"source of glr_dist \w{12} instead of \w{12}",
        line,
    )


@pytest.mark.slow
def test_actors_that_ray_kills_for_their_memory_end_a_run_with_the_remedy(start, tiny_yaml, tmp_path):
    environment = {**os.environ, "RAY_memory_usage_threshold": "0.01"}  # Ray thinks that the node is full
    process = start("train", tiny_yaml, *LONG, "--out", tmp_path / "run", env=environment)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    line = error.splitlines()[-1]
    assert "because a node ran out of memory" in line
    for remedy in ("execution.actors", "estimator.copies", "training.batch_size"):
        assert remedy in line


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["layers", "replicas"])
def test_no_process_of_a_local_run_listens_beyond_the_loopback_interface(start, tiny_yaml, tmp_path, kind):
    process = start("train", tiny_yaml, *on_two(kind), "--out", tmp_path / "run")
    children = after_epochs(process, 1)
    opened = [each for child in children for each in child.net_connections() if each.status == "LISTEN"]
    process.terminate()
    process.communicate(timeout=60)
    assert len(opened) > 5
    assert {each.laddr.ip.removeprefix("::ffff:") for each in opened} == {"127.0.0.1"}
