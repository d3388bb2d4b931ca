"""Replicas: processes that sum their shares compute what `inline` computes; with and without Ray."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from torch import Tensor, distributed, multiprocessing

from glr_dist import cli, config
from glr_dist.config import Config, Execution
from glr_dist.errors import ClusterError, ConfigError, NoGradientError, UserError
from glr_dist.execution import replicas
from glr_dist.execution.all_reduce import LostReplicaError, OtherReplicaError, Replicas, begun_alike
from glr_dist.execution.replicas import check_workers, run_replicas
from glr_dist.training import checkpoint
from glr_dist.training.replicas import ReplicasTrainer, _train
from glr_dist.training.train import train, trainer_of
from glr_dist.training.trainer import Trainer

TIMEOUT = 120  # seconds after which a process is assumed to hang
CPU = torch.device("cpu")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test

# 24 steps; the last batch of an epoch has 14 examples, one block: of two workers, one has nothing to do.
EPOCHS = 4
STEPS = (
    f"training.epochs={EPOCHS}",
    "training.batch_size=256",
    "training.optimizer={name: SGD, lr: 0.3, momentum: 0.9}",
)
ON_TWO = ("execution.kind=replicas", "execution.actors=2")
VARIANTS = {
    "conditional": ["training.loss=zero_one", "estimator.passes=2"],
    "joint": ["estimator.name=joint", "training.loss=zero_one"],
    "layerwise": ["estimator.name=layerwise", "training.loss=zero_one"],
    "pathwise": ["estimator={name: pathwise, passes: 2}", "model.activation=tanh", "training.optimizer.lr=0.03"],
    "plateau": ["noise.learn=unit", "training.schedule={name: ReduceLROnPlateau, patience: 0, threshold: 0.5}"],
    "dropout": ["model.dropout=0.3", "noise.learn=site", "estimator.head=derivative"],
    "feedback": ["training.loss=zero_one", "estimator={head: expected, feedback: control_variate, copies: 10}"],
}


def parameters(out: Path) -> dict[str, Tensor]:
    return checkpoint.newest(out / "checkpoints")[1]["network"]


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Returns the largest relative difference of a parameter in the Euclidean norm."""
    assert one.keys() == other.keys()
    return max(((one[name] - other[name]).norm() / other[name].norm()).item() for name in one)


def files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))


# ---------------------------------------------------------------- processes without Ray


def process(rank: int, number: int, store: Path, function: Callable[..., None], arguments: list[tuple]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=number)
    for each in arguments:
        function(*each)
    distributed.destroy_process_group()


def in_processes(number: int, store: Path, function: Callable[..., None], arguments: list[tuple]) -> None:
    """Runs a function in processes that `torch.distributed` connects."""
    multiprocessing.spawn(process, (number, store, function, arguments), nprocs=number)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> dict[int, dict[str, Path]]:
    """Trains all variants; returns their folders by number of processes, where 0 is inline."""
    root = tmp_path_factory.mktemp("runs")
    found = {number: {name: root / str(number) / name for name in VARIANTS} for number in (0, 1, 2)}
    for name, overrides in VARIANTS.items():
        train(tiny(*STEPS, *overrides), found[0][name])
    for number in (1, 2):
        runs = []
        for name, overrides in VARIANTS.items():
            settings = tiny(*STEPS, *overrides, "execution.kind=replicas", f"execution.actors={number}")
            # One worker may run what needs two; the driver would refuse two workers on the last batch alone.
            ReplicasTrainer(settings, found[number][name])
            runs.append((settings, found[number][name], settings.training.epochs, CPU))
        if number == 1:  # needs no other process
            threads = torch.get_num_threads()
            process(0, 1, root / "store-1", _train, runs)
            torch.set_num_threads(threads)
        else:
            in_processes(number, root / f"store-{number}", _train, runs)
        for settings, out, _, _ in runs:
            train(settings, out, resume=True)  # the driver's part; no epoch is left, so Ray does not start
    return found


@pytest.mark.process
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
def test_processes_train_the_same_network_as_inline(tiny, tmp_path, runs, name, number):
    inline = parameters(runs[0][name])
    assert difference(parameters(runs[number][name]), inline) < 1e-5
    fresh = Trainer(tiny(*STEPS, *VARIANTS[name]), tmp_path / "fresh").net.state_dict()
    assert difference(inline, fresh) > 0.05  # otherwise the network has not trained, and equality means little
    assert metrics(runs[0][name])[-1]["step"] == metrics(runs[number][name])[-1]["step"] == 6 * EPOCHS


@pytest.mark.process
@pytest.mark.parametrize("name", VARIANTS)
def test_one_process_is_bitwise_identical_to_inline(runs, name):
    assert difference(parameters(runs[1][name]), parameters(runs[0][name])) == 0


@pytest.mark.process
@pytest.mark.parametrize("name", VARIANTS)
def test_only_the_first_process_writes_the_folder_with_the_files_of_inline(runs, name):
    assert files(runs[2][name]) == files(runs[0][name])
    records = metrics(runs[2][name])
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))
    for one, other in zip(records, metrics(runs[0][name]), strict=True):
        assert one.keys() == other.keys()
        for key in set(one) - {"seconds", "time", "copies_per_second"}:
            assert one[key] == pytest.approx(other[key], rel=1e-4), key
    summaries = [json.loads((runs[number][name] / "summary.json").read_text()) for number in (0, 2)]
    assert summaries[0].keys() == summaries[1].keys()
    assert summaries[0]["test_accuracy"] == summaries[1]["test_accuracy"]


def begin_and_step(settings: Config, out: Path) -> None:
    """An error in one process, or a difference between them, ends all of them; none waits for another."""
    rank = distributed.get_rank()

    def begin() -> int:
        if rank == 1:
            raise NoGradientError("mine")
        return 1

    assert begun_alike(lambda: 5, str) == 5
    with pytest.raises(RuntimeError, match=r"start from different states: \[0, 1\]"):
        begun_alike(lambda: rank, int)
    with pytest.raises(NoGradientError if rank == 1 else OtherReplicaError, match="mine" if rank == 1 else "another"):
        begun_alike(begin, int)

    net = Trainer(settings, out / str(rank)).net
    net.executor = Replicas(1)
    x, y = torch.rand(256, 1, 8, 8), torch.zeros(256, dtype=torch.long)

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        if rank == 1:
            raise UserError("mine")
        return outputs.square().sum(1)

    with pytest.raises(UserError, match="mine" if rank == 1 else "another"):
        net.estimate(x, y, loss)
    assert all(parameter.grad is None for parameter in net.parameters())
    net.estimate(x, y)


def lose(settings: Config, out: Path, store: Path) -> None:
    """The second process ends in mid-run; the first one must not wait forever."""
    net = Trainer(settings, out / str(distributed.get_rank())).net
    net.executor = Replicas(1)
    x, y = torch.rand(256, 1, 8, 8), torch.zeros(256, dtype=torch.long)
    net.estimate(x, y)
    if distributed.get_rank() == 1:
        os._exit(0)
    with pytest.raises(LostReplicaError, match="the sum over the replicas failed"):
        for _ in range(100):
            net.estimate(x, y)
    (store / "raised").touch()
    os._exit(0)


def begin_step_and_lose(settings: Config, out: Path) -> None:
    begin_and_step(settings, out / "whole")
    lose(settings, out / "lost", out)


@pytest.mark.process
def test_processes_notice_different_states_and_lost_processes(tiny, tmp_path):
    in_processes(2, tmp_path / "store", begin_step_and_lose, [(tiny(), tmp_path)])
    assert (tmp_path / "raised").exists()


# ---------------------------------------------------------------- errors found before Ray starts


@pytest.mark.parametrize(
    ("execution", "batch", "block", "words"),
    [
        ({"actors": 2}, 128, 128, ["2 replicas", "batch of 128", "=128", "at most 64", "actors to at most 1"]),
        ({"actors": 4}, 9, 3, ["has 3 (", "at most 2, or actors to at most 3"]),
        ({"actors": 9}, 4, 1, ["set actors to at most 4"]),
        ({"actors": 9}, 4, 2, ["set actors to at most 2"]),
        ({"device": "cuda"}, 128, 128, ["execution.device: 'cuda'", "gpus_per_actor=0"]),
        ({"device": "cpu", "gpus_per_actor": 0.5}, 128, 128, ["execution.device: 'cpu'", "gpus_per_actor=0.5"]),
        ({"device": "cuda:1", "gpus_per_actor": 1}, 128, 128, ["execution.device: 'cuda:1'"]),
    ],
)  # fmt: skip
def test_workers_without_blocks_and_contradicting_devices_are_refused(execution, batch, block, words):
    with pytest.raises(ConfigError) as caught:
        check_workers(Execution(kind="replicas", **execution), batch, block)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_the_advised_block_is_small_enough():
    for workers in (1, 2, 3, 7):
        for batch in range(1, 40):
            execution = Execution(kind="replicas", actors=workers)
            if workers <= batch:
                assert check_workers(execution, batch, batch // workers) >= workers, (workers, batch)
            else:  # no block is small enough; the message advises fewer workers
                with pytest.raises(ConfigError, match=f"actors to at most {batch}$"):
                    check_workers(execution, batch, 1)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.batch_size=128"], "execution.actors: 2 replicas"),
        (["training.batch_size=5000", "estimator.example_block=1294"], "a batch of 1294 examples has 1"),
        (["estimator={name: pathwise}"], "no gradient"),  # threshold units
        (["training.optimizer={name: Adma}"], "did you mean"),
        (["noise.scale={'7': 1.0}"], "matches no site"),
    ],
)
def test_an_invalid_config_is_refused_before_ray_starts(tiny_yaml, tmp_path, capsys, monkeypatch, overrides, words):
    monkeypatch.setattr(replicas, "connected", None)
    assert cli.main(["train", str(tiny_yaml), "--out", str(tmp_path / "run"), *ON_TWO, *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.slow
def test_a_finished_run_is_tested_again_without_ray(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(replicas, "connected", None)
    once = train(tiny("training.epochs=1"), tmp_path / "run")
    assert train(tiny("training.epochs=1", *ON_TWO), tmp_path / "run", resume=True) == once


# ---------------------------------------------------------------- Ray


def descendants(pid: int) -> dict[int, str]:
    """Returns the titles of all descendants of a process by process id."""
    children: dict[int, list[int]] = {}
    titles = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.name))
    found, left = {}, [pid]
    while left:
        for child in children.get(left.pop(), []):
            found[child] = titles[child]
            left.append(child)
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def wait(condition: Callable[[], object], seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = ("training.epochs=5", *STEPS[1:], "model.activation=tanh", "estimator.copies=600", *ON_TWO)


@pytest.mark.ray
@pytest.mark.long
def test_training_on_replicas_advances_by_epochs_and_continues(local_ray, tiny, tmp_path):
    config = tiny("training.epochs=2", *STEPS[1:], *ON_TWO)
    trainer = trainer_of(config, tmp_path / "run")
    trainer.advance(1)
    assert (trainer.epoch, [record["epoch"] for record in trainer.history]) == (1, [1])
    summary = trainer.run()
    ReplicasTrainer(config, tmp_path / "whole")
    in_processes(2, tmp_path / "store", _train, [(config, tmp_path / "whole", 2, CPU)])  # without Ray, in one go
    assert summary["params_sha256"] == train(config, tmp_path / "whole", resume=True)["params_sha256"]


@pytest.mark.ray
@pytest.mark.long
def test_a_killed_worker_costs_only_the_current_epoch_and_changes_no_bit(local_ray, tiny, tmp_path, capfd):
    """Also of a run that begins with the parameters of another one, and is advanced before it is finished."""
    train(tiny("training.epochs=1", "model.activation=tanh"), tmp_path / "other")
    settings = tiny(*LONG, f"model.weights={tmp_path / 'other'}")
    whole, out = tmp_path / "whole", tmp_path / "killed"
    ReplicasTrainer(settings, whole)
    in_processes(2, tmp_path / "store", _train, [(settings, whole, 5, CPU)])  # without Ray, without a failure
    train(settings, whole, resume=True)
    capfd.readouterr()
    workers: list[int] = []

    def kill() -> None:
        wait((out / "checkpoints" / checkpoint.name_of(2)).exists, 3 * TIMEOUT)
        workers.extend(pid for pid, title in descendants(os.getpid()).items() if "RayTrainWorker" in title)
        os.kill(workers[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    trainer = trainer_of(settings, out)
    trainer.advance(5)
    thread.join()
    assert (trainer.epoch, [record["epoch"] for record in trainer.history]) == (5, [1, 2, 3, 4, 5])
    summary = trainer.run()  # no epoch is left
    assert len(workers) == 2
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["params_sha256"] == json.loads((whole / "summary.json").read_text())["params_sha256"]
    assert [record["epoch"] for record in metrics(out)] == [1, 2, 3, 4, 5]
    assert files(out) == files(whole)
    assert config.load_config(out / "config.yaml") == config.load_config(whole / "config.yaml")
    captured = capfd.readouterr()
    lines = [line for line in captured.out.splitlines() if not line.startswith("\x1b[33m(raylet)")]
    assert [line.split()[:2] for line in lines] == [["epoch", f"{epoch}/5"] for epoch in range(1, 6)]
    (warning,) = captured.err.splitlines()
    assert warning.startswith("warning: worker")
    assert "its process died or stopped responding" in warning
    wait(lambda: not alive(workers))


@pytest.mark.ray
@pytest.mark.long
def test_an_error_that_a_user_must_fix_is_not_retried(local_ray, tiny_yaml, tmp_path, capsys):
    overrides = ["model.activation=relu", "training.optimizer={name: SGD, lr: 1e38}", *ON_TWO]
    assert cli.main(["train", str(tiny_yaml), "--out", str(tmp_path / "run"), *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # no warning of a failure before it
    assert "not finite" in line
    assert not (tmp_path / "run").exists()  # nothing was computed


def second_raises(device: torch.device) -> None:
    """The first worker waits for the second one, which fails."""
    assert device == CPU
    if distributed.get_rank() == 1:
        raise KeyError("a bug")
    distributed.barrier()


def second_raises_user_error(device: torch.device) -> None:
    def begin() -> int:
        if distributed.get_rank() == 1:
            raise NoGradientError("fix it")
        return 1

    begun_alike(begin, int)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        (second_raises, ClusterError, "max_failures=0 times; last failure: worker 1: KeyError: 'a bug'"),
        (second_raises_user_error, NoGradientError, "fix it"),
    ],
)
def test_an_error_in_one_worker_reaches_the_driver(local_ray, tmp_path, function, kind, words):
    execution = Execution(kind="replicas", actors=2, max_failures=0)
    with pytest.raises(kind) as caught:
        run_replicas(function, execution, 2, tmp_path / "errors", lambda: None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "errors").exists()


@pytest.mark.ray
def test_workers_that_do_not_fit_are_refused(local_ray, tmp_path):
    for asked in ({"gpus_per_actor": 3.0}, {"cpus_per_actor": 1000.0}):
        execution = Execution(kind="replicas", actors=2, **asked)
        started = time.monotonic()
        with pytest.raises(ClusterError) as caught:
            run_replicas(second_raises, execution.model_copy(update={"placement_timeout": 1.0}), 2, tmp_path, None)
        assert time.monotonic() - started < 10
        assert "no room for 2 x" in str(caught.value)
        assert f"{next(iter(asked.values())):g}" in str(caught.value)
        assert "the cluster has" in str(caught.value)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_run_leaves_nothing_behind(start, tiny_yaml, tmp_path, number):
    out, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    long = ("training.epochs=1000", "estimator.copies=100", *ON_TWO)
    run = start("train", tiny_yaml, "--out", out, *long, env={**os.environ, "HOME": str(home)})
    try:
        wait(lambda: run.poll() is not None or (out / "checkpoints" / checkpoint.name_of(2)).exists())
        below = descendants(run.pid)
        assert sum("RayTrainWorker" in title for title in below.values()) == 2
        run.send_signal(number)
        _, errors = run.communicate(timeout=TIMEOUT)
    finally:
        run.kill()
    assert run.returncode == 130, errors
    line = errors.splitlines()[-1]
    assert "stopped after epoch" in line
    assert f"--resume --out {out}" in line
    wait(lambda: not alive(list(below)), 30)
    assert {path.name for path in out.iterdir()} == {"config.yaml", "data.json", "metrics.jsonl", "checkpoints"}
    assert {path.name for path in home.iterdir()} <= {".ray"}  # Ray's own token
    last = metrics(out)[-1]["epoch"]
    resumed = Trainer(config.load_config(out / "config.yaml", ["execution=inline"]), out, resume=True)
    assert 0 <= last - resumed.epoch <= 1
