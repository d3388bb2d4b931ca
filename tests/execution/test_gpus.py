"""GPUs that the cluster declares: who reserves them, which of them each process sees, and where it computes.

No GPU is needed: the arithmetic is the CPU's, the placement is that of a cluster with two GPUs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch
from ray import cloudpickle
from torch import distributed

from execution.variants import same, trained
from glr_dist.config import Execution
from glr_dist.errors import ClusterError
from glr_dist.execution import layers as layers_module
from glr_dist.execution.inline import Inline
from glr_dist.execution.layers import Layers
from glr_dist.execution.pool import Call, Pool
from glr_dist.execution.replicas import run_replicas
from glr_dist.execution.worker import Worker

from .test_pool import until

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors' processes cannot import a test
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

VISIBLE = "CUDA_VISIBLE_DEVICES"


class OnCpu(Worker):
    """A worker that notes the device and the threads that it is given, and computes on the CPU."""

    def __init__(self, device: torch.device, threads: int = 1) -> None:
        super().__init__(torch.device("cpu"), threads)
        self.given = str(device), threads

    def where(self) -> tuple[int, str, str, int]:
        """Returns its process, the GPUs that this sees, and what it was given."""
        time.sleep(0.1)  # so that every actor of a pool answers
        return os.getpid(), os.environ.get(VISIBLE, "all"), *self.given


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Layers]]:
    """Executors whose actors are placed on GPUs and compute on the CPU."""
    monkeypatch.setattr(layers_module, "Worker", OnCpu)

    made: list[Layers] = []

    def placed(*arguments: object, **options: object) -> Layers:
        executor = Layers(*arguments, **options)
        executor.device = torch.device("cpu")
        made.append(executor)
        return executor

    yield placed
    for executor in made:
        executor.close()


def seen(pool: Pool) -> dict[int, tuple[str, str, int]]:
    """Returns, by process, the visible GPUs of each actor, its device and its threads."""
    found: dict[int, tuple[str, str, int]] = {}

    def all_answered() -> bool:
        answers = pool.run(Call("where", ()) for _ in range(2 * len(pool)))
        found.update({pid: tuple(rest) for _, (pid, *rest) in answers})
        return len(found) >= len(pool)

    assert until(all_answered, 60)
    return found


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("actors", "share", "on_one"),
    [
        pytest.param(1, 1, [1], marks=LONG),
        (2, 1, [1, 1]),
        pytest.param(3, 0.5, [1, 2], marks=LONG),
        pytest.param(4, 0.5, [2, 2], marks=LONG),
    ],
)
def test_each_actor_sees_the_gpu_that_it_reserves_and_the_bits_are_those_of_inline(on_cpu, actors, share, on_one):
    executor = on_cpu(actors, gpus_per_actor=share, cpus_per_actor=0.5)
    found = seen(executor.pool)
    visible = [gpu for gpu, _, _ in found.values()]
    assert set(visible) <= {"0", "1"}  # one GPU each, whose name inside the process is cuda:0
    assert sorted(visible.count(gpu) for gpu in set(visible)) == on_one
    assert {device for _, device, _ in found.values()} == {"cuda"}
    assert same(trained("conditional", executor), trained("conditional", Inline()))


@LONG
def test_an_actor_that_is_restarted_gets_the_gpu_of_the_lost_one(on_cpu):
    executor = on_cpu(2, gpus_per_actor=1)
    before = seen(executor.pool)
    killed = next(iter(before))
    psutil.Process(killed).send_signal(signal.SIGKILL)
    assert same(trained("conditional", executor), trained("conditional", Inline()))
    assert executor.pool.restarts == 1
    after = seen(executor.pool)
    (restarted,) = after.keys() - before.keys()
    assert after[restarted] == before[killed]


@LONG
def test_an_actor_with_a_gpu_computes_one_item_at_a_time_and_one_without_as_many_as_its_cpus(on_cpu):
    for gpus, expected in ((1, ("cuda", 1)), (0, ("cpu", 2))):
        executor = on_cpu(1, cpus_per_actor=2, gpus_per_actor=gpus)
        ((_, *given),) = seen(executor.pool).values()
        assert tuple(given) == expected


def test_actors_beyond_the_gpus_are_refused_in_one_line():
    with pytest.raises(ClusterError, match=r"no room for 3 x \(1 CPU and 1 GPU\)") as caught:
        Layers(3, gpus_per_actor=1, placement_timeout=1)
    assert "2 GPU (2 free)" in str(caught.value)
    with pytest.raises(ClusterError, match=r"no room for 5 x \(0.5 CPU and 0.5 GPU\)"):
        Layers(5, cpus_per_actor=0.5, gpus_per_actor=0.5, placement_timeout=1)


@pytest.mark.parametrize(("device", "words"), [("cuda:1", "'cuda:1' is not allowed"), ("cpu", "on cuda, this process")])
def test_a_driver_on_another_kind_of_device_or_another_number_is_refused(device, words):
    executor = object.__new__(Layers)  # without actors
    executor.device = torch.device("cuda")
    with pytest.raises(ClusterError, match=words):
        executor.begin(None, SimpleNamespace(device=torch.device(device)))


def test_by_default_there_are_as_many_actors_as_gpus(on_cpu):
    for share, number in ((1, 2), (0.5, 4)):
        assert until(lambda: ray.available_resources().get("GPU") == 2)
        executor = on_cpu(gpus_per_actor=share)
        assert len(executor.pool) == number
        executor.close()


def noted(device: torch.device, folder: Path) -> None:
    """Writes what a replica sees."""
    rank = distributed.get_rank()
    total = torch.ones(1)
    distributed.all_reduce(total)
    found = {"visible": os.environ.get(VISIBLE), "backend": distributed.get_backend(), "sum": total.item()}
    (folder / f"{rank}.json").write_text(json.dumps(found))


class Noted:
    """`noted` with a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, device: torch.device) -> None:
        noted(device, self.folder)


@LONG
def test_replicas_that_share_a_gpu_are_connected_by_gloo(tmp_path):
    execution = Execution(kind="replicas", actors=2, gpus_per_actor=0.5, max_failures=0)
    run_replicas(Noted(tmp_path), execution, 2, tmp_path / "run", lambda: None)
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(found) == 2
    for each in found:
        assert each["backend"] == "gloo"
        assert each["sum"] == 2
        assert set(each["visible"].split(",")) <= {"0", "1"}


@LONG
@pytest.mark.skipif(torch.cuda.is_available(), reason="there NCCL works: jobs/gpu_check.py")
def test_replicas_with_a_gpu_each_are_connected_by_nccl(tmp_path):
    execution = Execution(kind="replicas", actors=2, gpus_per_actor=1, max_failures=0)
    with pytest.raises(ClusterError, match=r"(?i)nccl") as caught:
        run_replicas(Noted(tmp_path), execution, 2, tmp_path / "run", lambda: None)
    assert "\n" not in str(caught.value)
