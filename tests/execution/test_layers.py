"""`layers`: bitwise identical to `inline` for any number of actors."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from kinds import KINDS
from torch import Tensor, nn

import glr_dist
from execution.variants import VARIANTS, batch, made, same, trained
from glr_dist import config, data
from glr_dist.build import network_of, optimizer_of
from glr_dist.errors import ClusterError, UserError
from glr_dist.execution import plan, predict
from glr_dist.execution.inline import Inline
from glr_dist.execution.layers import Layers
from glr_dist.losses import LOSSES
from glr_dist.training import checkpoint

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def layers(local_ray: None) -> Iterator[dict[int, Layers]]:
    """Executors of 1, 2 and 3 actors."""
    executors = {number: Layers(number, cpus_per_actor=0.5, threads=1) for number in (1, 2, 3)}
    yield executors
    for executor in executors.values():
        executor.close()


# One of each kind of work item; the other variants are long.
BY_DEFAULT = ("conditional", "joint", "expected head, learned scales", "flips", "calls of one module")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in BY_DEFAULT)) for name in VARIANTS]
)
def test_the_parameters_are_bitwise_identical_to_inline(layers, name):
    expected = trained(name, Inline())  # with the default number of threads
    assert expected["loss"] != 0
    for number in layers:
        assert same(trained(name, layers[number]), expected), f"{number} actors"


SPREAD = ("conditional, three passes", "layerwise", "mixed network", "learned scales", "flips")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in SPREAD)) for name in VARIANTS]
)
def test_a_shared_pass_that_is_spread_over_the_actors_gives_the_same_bits(layers, name, monkeypatch):
    calls = []
    run = layers[3].pool.run

    def spied(given):  # records the method of each call
        return run(calls.append(call.method) or call for call in given)

    monkeypatch.setattr(layers[3].pool, "run", spied)
    monkeypatch.setattr(layers[3], "_spread", lambda step: True)
    assert same(trained(name, layers[3]), trained(name, Inline()))
    passes = VARIANTS[name][2].get("passes", 1)
    most = max(passes.values()) if isinstance(passes, dict) else passes
    assert calls.count("tape") == 3 * 3 * most  # steps, blocks of examples, passes


def test_a_shared_pass_is_spread_if_it_is_long_and_there_are_more_actors_than_threads(layers):
    net, (x, y) = made("conditional", layers[3]), batch("conditional")
    net.prepare(x)
    step = net.bind(x, y)  # three blocks of examples
    for seconds, number, spread in ((1.0, 3, True), (1.0, 1, False), (0.001, 3, False)):
        executor = layers[number]
        executor._pass_seconds.clear()  # of earlier tests
        executor._pass_seconds.extend([9.0, seconds])
        assert not executor._spread(step)  # too few measurements
        executor._pass_seconds.append(9.0)
        assert executor._spread(step) == spread
        executor._pass_seconds.clear()


def digests(settings: config.Config, executors: list[object], steps: int) -> set[str]:
    """Returns the digests of the parameters that each executor computes in `steps` steps."""
    dataset, found = data.load(settings.data), set()
    for executor in executors:
        net = network_of(settings, dataset, torch.device("cpu"))
        net.executor = executor
        optimizer = optimizer_of(settings.training, net)
        for number in range(steps):
            x, y = dataset.train.batch(slice(128 * number, 128 * (number + 1)))
            optimizer.zero_grad()
            net.estimate(x, y, LOSSES[settings.training.loss])
            optimizer.step()
        found.add(checkpoint.digest(net.state_dict()))
    return found


ESTIMATORS = {
    "conditional": (),
    "layerwise": ("estimator.name=layerwise",),
    "joint": ("estimator.name=joint",),
    "pathwise": (
        "estimator={name: pathwise}",
        "model.activation=sigmoid",
        "training.loss=cross_entropy",
    ),
}
DATA = """
model: {hidden: [50], activation: threshold}
noise: {scale: 0.5}
estimator: {copies: 100}
training: {loss: zero_one}
"""


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("which", ["digits", pytest.param("mnist", marks=pytest.mark.long)])
def test_inline_and_any_number_of_actors_give_one_digest_on_real_data(layers, which, name, tmp_path, request):
    (tmp_path / "run.yaml").write_text(DATA)
    overrides = [f"data.name={which}", *ESTIMATORS[name]]
    if which == "mnist":
        overrides.append(f"data.root={request.getfixturevalue('glr_data')}")
    settings = config.load_config(tmp_path / "run.yaml", overrides)
    if name in ("conditional", "joint"):
        assert settings.estimator.sampler == "orthogonal"
    assert len(digests(settings, [Inline(), Inline(1), *layers.values()], steps=6)) == 1


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind == "ResNet-8")) for kind in KINDS]
)
def test_every_kind_of_network_gives_one_digest_inline_and_on_any_number_of_actors(layers, kind, tmp_path):
    (tmp_path / "run.yaml").write_text(f"model: {KINDS[kind]}\nestimator: {{copies: 4}}\n")
    settings = config.load_config(tmp_path / "run.yaml")
    assert len(digests(settings, [Inline(), Inline(1), *layers.values()], steps=2)) == 1


# ---------------------------------------------------------------- changes between steps


def test_a_network_that_changes_is_sent_again(layers):
    """Changes the mode, a frozen layer, the loss and the seed; another network uses the same actors in between."""
    x, y = batch("mixed network")
    nets = [made("mixed network", executor) for executor in (Inline(), layers[2])]
    other = made("conditional", layers[2])

    def compared(loss) -> None:
        found = [net.gradients(x, y, loss).grads for net in nets]
        assert found[0].keys() == found[1].keys()
        assert same(found[1], found[0])

    compared(glr_dist.losses.cross_entropy)
    for net in nets:
        net.eval()  # no dropout
    compared(glr_dist.losses.cross_entropy)
    other.gradients(x, y)
    for net in nets:
        net.model[0][0].weight.requires_grad_(False)
    compared(glr_dist.losses.cross_entropy)
    compared(lambda outputs, targets: (outputs.argmax(1) - targets).abs().float())
    for net in nets:
        net.seed += 1
    compared(glr_dist.losses.cross_entropy)


def test_a_copy_of_a_network_shares_its_actors(layers):
    net, (x, y) = made("conditional", layers[2]), batch("conditional")
    net.estimate(x, y)
    twin = copy.deepcopy(net)
    assert twin.executor is net.executor
    assert same(twin.gradients(x, y).grads, net.gradients(x, y).grads)


# ---------------------------------------------------------------- errors


def test_an_error_in_an_actor_is_that_of_inline_and_leaves_the_actors_usable(layers):
    x, y = batch("conditional")

    def message(executor) -> str:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs.sum(1) if len(outputs) == 20 else outputs.sum()  # valid in the shared pass only

        net = glr_dist.GLR(model, copies=4, executor=executor)
        with pytest.raises(UserError) as caught:
            net.gradients(x, y, loss)
        return str(caught.value)

    assert message(layers[2]) == message(Inline())
    assert same(trained("conditional", layers[2]), trained("conditional", Inline()))


def test_an_error_in_this_process_leaves_the_actors_usable(layers):
    net, (x, y) = made("conditional, three passes", layers[2]), batch("conditional")
    with pytest.raises(FloatingPointError, match="the inputs"):
        net.gradients(x * torch.nan, y)
    with torch.no_grad():
        net.model[3].weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="site '3'"):
        net.gradients(x, y)
    assert same(trained("conditional", layers[2]), trained("conditional", Inline()))


def test_a_loss_that_cannot_be_sent_is_refused_in_one_line(layers):
    net, (x, y) = made("conditional", layers[2]), batch("conditional")
    lock = threading.Lock()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        with lock:
            return outputs.sum(1)

    with pytest.raises(UserError, match="cannot be sent to the actors") as caught:
        net.gradients(x, y, loss)
    assert "\n" not in str(caught.value)


def test_tensors_of_another_kind_of_device_are_refused(layers):
    net, (x, y) = made("conditional", layers[2]), batch("conditional")
    net.prepare(x)
    with pytest.raises(
        ClusterError, match=r"execution\.gpus_per_actor: the actors compute on cpu, this process on meta"
    ):
        layers[2].begin(net.estimator, replace(net.bind(x, y), x=x.to("meta")))


# ---------------------------------------------------------------- statistics


def test_progress_covers_the_work_since_the_previous_call(layers):
    executor = layers[2]
    executor.progress()
    net, (x, y) = made("conditional", executor), batch("conditional")
    for _ in range(5):
        net.estimate(x, y)
    found = executor.progress()
    assert found["items_per_second"] > 0
    assert len(found["actor_busy_share"]) == 2
    assert all(0 <= share < 1 for share in found["actor_busy_share"])
    assert any(found["actor_busy_share"])
    assert found["actor_restarts"] == 0
    assert executor.progress()["items_per_second"] == 0


@pytest.mark.parametrize("name", ["conditional", "joint", "pathwise"])
def test_the_bytes_sent_are_those_predicted(layers, name, tmp_path):
    """Bytes put into the object store and returned; within 5 %, because arrays begin at multiples of 64 bytes."""
    (tmp_path / "run.yaml").write_text(DATA)
    settings = config.load_config(tmp_path / "run.yaml", ["model.hidden=[100, 50]", *ESTIMATORS[name]])
    dataset = data.load(settings.data)
    net = network_of(settings, dataset, torch.device("cpu"))
    x, y = dataset.train.batch(slice(0, 300))
    net.executor = executor = layers[2]
    loss = LOSSES[settings.training.loss]
    step, estimator = net.bind(x, y, loss), net.estimator
    with torch.no_grad(), net.network.hooked():
        tapes = [
            estimator.tape(step, shared, e) for shared in range(estimator.passes(step)) for e in step.example_blocks
        ]
    planned = plan.state_bytes(step) + sum(plan.tape_bytes(step, tape) for tape in tapes)
    planned += sum(plan.partial_bytes(step, item) for item in predict.all_items(estimator, step))
    executor._pass_seconds.clear()  # on a busy machine, slow passes would be spread over the actors, which sends more
    before = executor.bytes
    net.estimate(x, y, loss)
    assert executor.bytes - before == pytest.approx(planned, rel=0.05)
    assert planned > 10**5


def test_an_allotted_budget_is_the_same_on_actors(layers):
    x, y = batch("conditional")
    options = {"copies": "auto", "passes": "auto", "redraw": "auto", "budget": 15.0, "measure_every": 2}

    def run(executor):
        model = made("conditional", executor).model
        net = glr_dist.GLR(model, 0.5, executor=executor, example_block=8, block_elements=2**12, **options)
        for _ in range(3):
            net.estimate(x, y)
        return net.allotment, {name: parameter.grad for name, parameter in net.model.named_parameters()}

    allotment, expected = run(Inline())
    assert allotment is not None
    for number in (1, 3):
        found, grads = run(layers[number])
        assert found == allotment
        assert all(torch.equal(grads[name], grad) for name, grad in expected.items()), f"{number} actors"
