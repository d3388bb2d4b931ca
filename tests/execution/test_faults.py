"""Runs with failures end with the parameters of an undisturbed run, and leave nothing behind."""

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
from glr_dist import cli
from glr_dist.execution.inline import Inline
from glr_dist.training import checkpoint

pytestmark = pytest.mark.ray

STEPS = 60


def trained(executor: object, before_step: Callable[[int], None] = lambda step: None) -> dict[str, torch.Tensor]:
    """Returns the parameters after STEPS steps with threshold units and the 0-1 loss."""
    net, (x, y) = made("conditional, three passes", executor), batch("conditional")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(STEPS):
        before_step(step)
        optimizer.zero_grad()
        net.estimate(x, y)
        optimizer.step()
    return net.state_dict()


@pytest.mark.long
def test_twelve_killed_or_frozen_actors_in_one_run_change_no_bit(local_ray):
    from glr_dist.execution.layers import Layers

    rng = random.Random(0)
    signals = {step: rng.choice([signal.SIGKILL, signal.SIGSTOP]) for step in rng.sample(range(2, STEPS), 12)}
    targets = []

    with Layers(2, hang_timeout=1.5) as executor:

        def strike(step: int) -> None:
            """Kills or freezes an actor during the step."""
            if step in signals:
                while not (pids := executor.pool.pids):  # no actor is known to be healthy yet
                    list(executor.pool.run([]))
                    executor.pool._wait()
                target = rng.choice(pids)
                targets.append(target)
                threading.Timer(rng.random() * 0.02, os.kill, (target, signals[step])).start()

        found = trained(executor, strike)
        restarts = executor.progress()["actor_restarts"]
    assert len(targets) == 12
    assert set(signals.values()) == {signal.SIGKILL, signal.SIGSTOP}
    # A signal to an actor that is already dead or frozen is not another loss.
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


@pytest.mark.long
def test_a_node_that_leaves_and_one_that_joins_change_no_bit(python):
    done = python(NODES, Path(__file__).parents[1])
    assert done.stdout.endswith("the same bits\n"), done.stderr[-2000:]


# ---------------------------------------------------------------- the command line

LONG = ("execution.kind=layers", "execution.actors=2", "training.epochs=400")


def after_epochs(process: subprocess.Popen[str], epochs: int) -> list[psutil.Process]:
    """Waits until a run has finished the given number of epochs; returns the processes that it has started."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"epoch {epochs}/"):
            return psutil.Process(process.pid).children(recursive=True)
    raise AssertionError(process.communicate()[1])


def gone(processes: Iterable[psutil.Process], seconds: float) -> bool:
    """Returns whether all processes end in time."""
    return not psutil.wait_procs(list(processes), timeout=seconds)[1]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)], ids=lambda number: number.name
)
def test_a_stopped_run_keeps_its_epochs_and_leaves_no_process(start, tiny_yaml, tmp_path, number):
    out = tmp_path / "run"
    process = start("train", tiny_yaml, *LONG, "--out", out)
    children = after_epochs(process, 2)
    assert len(children) > 4  # Ray's own and the actors
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after epoch" in error
    assert "Traceback" not in error
    assert gone(children, 30)
    _, state, damaged = checkpoint.newest(out / "checkpoints")
    assert state["epoch"] >= 2
    assert not damaged


@pytest.mark.long
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
    assert gone(children, 15)


@pytest.mark.long
def test_a_finished_run_leaves_no_process_and_reports_its_actors(start, tiny_yaml, tmp_path):
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


def test_a_request_that_does_not_fit_ends_in_one_line(local_ray, tiny_yaml, tmp_path, capsys):
    overrides = ("execution.kind=layers", "execution.actors=1", "execution.gpus_per_actor=3")
    limit = "execution.placement_timeout=1"
    assert cli.main(["train", str(tiny_yaml), *overrides, limit, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    message = error.splitlines()[-1]
    assert message.startswith("glr-dist: execution.actors: no room for 1 x (1 CPU and 3 GPU)")
    assert "Traceback" not in error


# ---------------------------------------------------------------- the end of Ray itself


@pytest.mark.long
def test_sigterm_to_the_process_group_ends_a_run_like_sigterm_to_the_driver(start, tiny_yaml, tmp_path):
    """Some batch systems send SIGTERM to the process group of a job."""
    process = start("train", tiny_yaml, *LONG, "--out", tmp_path / "run", start_new_session=True)
    children = after_epochs(process, 2)
    sent = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30  # Ray's own limit is a minute
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("stopped after epoch")
    assert gone(children, 15)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["layers", "replicas"])
def test_sigterm_to_every_process_of_a_job_ends_a_run(start, tiny_yaml, tmp_path, kind):
    """A batch system that tracks processes by control group also reaches those in other sessions."""
    process = start("train", tiny_yaml, *on_two(kind), "--out", tmp_path / "run")
    children = after_epochs(process, 2)
    for each in [psutil.Process(process.pid), *children]:
        each.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("stopped after epoch")
    assert gone(children, 15)


def on_two(kind: str) -> tuple[str, ...]:
    """Returns the overrides of a long run on two actors or replicas."""
    return f"execution.kind={kind}", "execution.actors=2", "training.epochs=4000", "estimator.example_block=256"


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "victim"),
    [
        ("layers", "raylet"),
        ("layers", "gcs_server"),
        ("replicas", "raylet"),
        ("replicas", "gcs_server"),
    ],
)
def test_a_killed_ray_process_ends_a_run_with_one_line_and_keeps_its_epochs(start, tiny_yaml, tmp_path, kind, victim):
    out = tmp_path / "run"
    process = start("train", tiny_yaml, *on_two(kind), "--out", out)
    children = after_epochs(process, 2)
    sent = time.monotonic()
    next(child for child in children if child.name() == victim).kill()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30  # Ray's own limit is a minute
    assert process.returncode == 2
    done = checkpoint.newest(out / "checkpoints")[1]["epoch"]
    line = error.splitlines()[-1]
    assert line.startswith(f"glr-dist: Ray's {victim} process on this machine was killed by SIGKILL; ")
    told = re.search(rf"stopped after epoch (\d+); continue with --resume --out {out}$", line)
    assert told is not None, line
    assert 2 <= int(told[1]) <= done  # a replica may finish an epoch before it notices
    assert kind == "replicas" or int(told[1]) == done
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


@pytest.mark.long
def test_a_busy_actor_and_all_of_ray_end_soon_after_the_driver_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    actor = psutil.Process(int(process.stdout.readline()))
    time.sleep(1)  # it is computing the call
    children = psutil.Process(process.pid).children(recursive=True)
    assert actor in children
    assert "ray::RuntimeEnvAgent" in [child.name() for child in children]
    process.kill()
    process.communicate()
    assert gone(children, 40)  # a second or two on an idle machine; Ray's agents alone would notice after a minute


@pytest.mark.long
@pytest.mark.parametrize("kind", ["layers", "replicas"])
def test_actors_whose_package_differs_by_one_number_are_refused(start, tiny_yaml, tmp_path, kind):
    package = Path(glr_dist.__file__).parent
    copied = shutil.copytree(package, tmp_path / "other" / "glr_dist") / "execution" / "memory.py"
    copied.write_text(copied.read_text().replace("2**30", "2**29"))
    job = json.dumps({"runtime_env": {"env_vars": {"PYTHONPATH": str(tmp_path / "other")}}})
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "RAY_JOB_CONFIG_JSON_ENV_VAR": job}
    overrides = (f"execution.kind={kind}", "execution.actors=1")
    process = start("train", tiny_yaml, *overrides, "--out", tmp_path / "run", cwd=tmp_path, env=environment)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 2, error
    line = error.splitlines()[-1]
    assert re.fullmatch(
        r"glr-dist: node \S+ runs different software, which may give different results: "
        r"source of glr_dist \w{12} instead of \w{12}",
        line,
    )


@pytest.mark.long
def test_a_run_whose_actors_ray_kills_for_lack_of_memory_ends_with_advice(start, tiny_yaml, tmp_path):
    environment = {**os.environ, "RAY_memory_usage_threshold": "0.01"}  # Ray thinks that the node is full
    process = start("train", tiny_yaml, *LONG, "--out", tmp_path / "run", env=environment)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    line = error.splitlines()[-1]
    assert "because a node ran out of memory" in line
    for remedy in ("execution.actors", "estimator.copies", "training.batch_size"):
        assert remedy in line


@pytest.mark.long
@pytest.mark.parametrize("kind", ["layers", "replicas"])
def test_no_process_of_a_local_run_listens_beyond_the_loopback_interface(start, tiny_yaml, tmp_path, kind):
    process = start("train", tiny_yaml, *on_two(kind), "--out", tmp_path / "run")
    children = after_epochs(process, 1)
    opened = [each for child in children for each in child.net_connections() if each.status == "LISTEN"]
    process.terminate()
    process.communicate(timeout=60)
    assert len(opened) > 5
    assert {each.laddr.ip.removeprefix("::ffff:") for each in opened} == {"127.0.0.1"}
