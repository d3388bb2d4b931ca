"""`auto`: measures a step, and chooses an executor."""

from __future__ import annotations

import pytest
import torch

from execution.variants import VARIANTS, batch, made
from glr_dist.config import Execution
from glr_dist.execution import cluster, plan, predict
from glr_dist.execution.auto import choose, measured_load
from glr_dist.execution.inline import Inline
from glr_dist.execution.predict import Frames, Load
from glr_dist.execution.reproducible import reproducible


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_is_measured_with_all_its_items_and_bytes(name):
    net, (x, y), loss = made(name, Inline(2)), batch(name), VARIANTS[name][1]
    net.prepare(x)
    step, estimator = net.bind(x, y, loss), net.estimator
    before = {key: value.clone() for key, value in net.state_dict().items()}
    load = measured_load(estimator, step)
    items = predict.all_items(estimator, step)
    assert len(load.items) == len(items) > 2
    assert min(load.items) > 0
    assert load.serial > 0
    with reproducible(), torch.no_grad(), net.network.hooked():
        tapes = [
            estimator.tape(step, shared, e) for shared in range(estimator.passes(step)) for e in step.example_blocks
        ]
    assert load.out == plan.state_bytes(step) + sum(plan.tape_bytes(step, tape) for tape in tapes)
    assert load.back == sum(plan.partial_bytes(step, item) for item in items)
    # The measurement does not advance the network.
    assert net.step == 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("seconds", "actors", "kind"),
    [(0.1, 8, "layers"), (0.1, 2, "inline"), (1e-5, 8, "inline")],
    ids=["much work for many", "no more actors than threads", "little work"],
)
def test_actors_are_chosen_if_they_are_faster(monkeypatch, capsys, seconds, actors, kind):
    load = Load((seconds,) * 64, (Frames((0, None), 0.0),) * 64, serial=0.001, back=10**6, out=10**6)
    monkeypatch.setattr("glr_dist.execution.auto.measured_load", lambda estimator, step: load)
    monkeypatch.setattr("glr_dist.execution.cluster.available", lambda cpus, gpus: 8)
    net, (x, y) = made("conditional", Inline(2)), batch("conditional")
    net.prepare(x)
    assert choose(Execution(kind="auto", actors=actors), net.estimator, net.bind(x, y), 2) == kind
    assert capsys.readouterr().err.startswith(f"execution auto: {kind}; predicted time of a step: ")


@pytest.mark.parametrize(("fit", "kind"), [(0, "inline"), (2, "inline"), (8, "layers")])
def test_actors_that_would_share_cores_are_not_counted(monkeypatch, fit, kind):
    load = Load((0.1,) * 64, (Frames((0, None), 0.0),) * 64, serial=0.001, back=10**6, out=10**6)
    monkeypatch.setattr("glr_dist.execution.auto.measured_load", lambda estimator, step: load)
    monkeypatch.setattr("glr_dist.execution.cluster.available", lambda cpus, gpus: fit)
    net, (x, y) = made("conditional", Inline(2)), batch("conditional")
    net.prepare(x)
    assert choose(Execution(kind="auto", actors=8), net.estimator, net.bind(x, y), 2) == kind


@pytest.mark.parametrize(("cpus", "gpus", "actors"), [(1, 0, 8), (3, 0, 2), (1, 1, 2), (1, 0.5, 4), (16, 0, 0)])
def test_without_a_cluster_the_resources_are_those_of_this_machine(monkeypatch, cpus, gpus, actors):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert cluster.available(cpus, gpus) == actors


def test_a_small_network_trains_inline_and_says_so(start, tiny_yaml, tmp_path):
    # Small enough on any machine, with the threads that it would have outside of a test run on all cores.
    small = ("execution={kind: auto, threads: 2}", "estimator.copies=2")
    run = start("train", tiny_yaml, *small, "--out", tmp_path / "run")
    _, error = run.communicate(timeout=120)
    assert run.returncode == 0, error
    (line,) = error.splitlines()
    assert line.startswith("execution auto: inline; ")
