"""The cost model: FLOPs against a counter, packing against its bounds, bytes against cases counted by hand."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import glr_dist
from glr_dist.estimators import Step, WorkItem
from glr_dist.estimators.work import direction_count, gradient_flops
from glr_dist.execution import plan, worker
from glr_dist.execution.predict import all_items
from glr_dist.execution.reproducible import reproducible
from glr_dist.losses import cross_entropy
from glr_dist.sites import Tape


class Residual(nn.Module):
    """A block with a site inside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def mlp(*widths: int) -> nn.Sequential:
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.Sigmoid())]
    return nn.Sequential(*layers[:-1])


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)
    )


def bound(model: nn.Module, x: Tensor, classes: int, **options: object) -> tuple[glr_dist.GLR, Step]:
    """Returns a network and a step on the batch x, with blocks of 5 examples by default."""
    noise = options.pop("noise", glr_dist.Gaussian(0.5))
    net = glr_dist.GLR(model, noise, **{"copies": 12, "example_block": 5, "block_elements": 400, **options})
    return net, net.bind(x, torch.arange(len(x)) % classes, cross_entropy)


def counted(net: glr_dist.GLR, step: Step, item: WorkItem) -> int:
    """Returns the FLOPs of products and convolutions that an item actually runs."""
    with reproducible(), torch.no_grad(), net.network.hooked():
        tape = net.estimator.tape(step, item.shared_pass, item.example_block)
        with FlopCounterMode(display=False) as counter:
            net.estimator.partial(step, item, tape)
    return counter.get_total_flops()


NETWORKS = {
    "mlp": (lambda: mlp(64, 48, 8, 3), (64,)),
    "convolutions": (convolutions, (1, 8, 8)),
    "residual": (lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh(), Residual(7), nn.Linear(7, 3)), (6,)),
}
OPTIONS = {
    "conditional": {},
    "two passes": {"passes": 2},
    "no pairs": {"antithetic": False},
    "iid": {"sampler": "iid"},
    "derivative head": {"head": "derivative"},
    "one block": {"block_elements": 2**19},
    "few items": {"items_per_site": 2},
    "layerwise": {"estimator": "layerwise"},
    "joint": {"estimator": "joint"},
}

# ---------------------------------------------------------------- work


# On convolutions, whose products take longest, these are long; the other networks have them in every lane.
LONG_ON_CONVOLUTIONS = {"two passes", "no pairs", "iid", "one block", "few items"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "options"),
    [
        pytest.param(
            network,
            options,
            id=f"{kind}-{name}",
            marks=pytest.mark.long if kind == "convolutions" and name in LONG_ON_CONVOLUTIONS else [],
        )
        for kind, network in NETWORKS.items()
        for name, options in OPTIONS.items()
    ],
)
def test_predicted_products_are_those_that_run(network, options):
    make, shape = network
    net, step = bound(make(), torch.rand(13, *shape), 3, **options)  # 5 + 5 + 3 examples
    items = all_items(net.estimator, step)
    assert {item.example_block for item in items} == {0, 1, 2}
    for item in items:
        # A site inside a block is charged for the whole block's gradients.
        nested = any(not site.top for site in step.network.sites)
        assert plan.work_of(step, item).flops == pytest.approx(counted(net, step, item), rel=0.05 if nested else 1e-9)


def test_a_segment_without_a_direct_rule_is_charged_for_running_again():
    model = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    _, step = bound(model, torch.rand(5, 6), 3)
    assert "2" not in step.rules  # its segment holds the LayerNorm's parameters too
    assert gradient_flops(step, step.network.by_name["0"], 5) == 2 * 6 * 7 * 5
    assert gradient_flops(step, step.network.by_name["2"], 5) == 3 * 2 * 7 * 3 * 5


def test_backpropagation_is_three_passes_and_runs_a_little_less():
    net, step = bound(mlp(64, 48, 8, 3), torch.rand(5, 64), 3, estimator="pathwise", copies=100, noise=None)
    (item,) = net.estimator.items(step, 0)
    assert plan.work_of(step, item).flops == 3 * 5 * 2 * (64 * 48 + 48 * 8 + 8 * 3)
    # The gradient of the input, which nobody wants, is not computed.
    assert counted(net, step, item) == plan.work_of(step, item).flops - 5 * 2 * 64 * 48


def test_an_item_by_hand():
    net, step = bound(mlp(10, 6, 4), torch.rand(7, 10), 4, example_block=7, block_elements=2**19, copies=8)
    first, last = net.estimator.items(step, 0)
    # 8 copies of 7 examples through 6 x 4 weights; the 42 numbers of δ are fewer than the 66 parameters: kept as δ.
    assert plan.work_of(step, first).flops == 2 * 6 * 4 * 8 * 7
    # Behind the last site nothing is left, and its 28 δ are as many as its 28 parameters.
    assert plan.work_of(step, last).flops == 0
    assert direction_count(first) == 4
    assert plan.element_work(plan.work_of(step, first)) == 4 * 7 * (plan._NOISE * 6 + plan._ACTIVATION * 2 * (6 + 4))
    assert plan.item_work(step, last) > plan._BLOCK  # small is not free
    assert plan.frame_work(step, first) == plan._QR * 6 * 4**2


def test_the_order_of_predictions_is_that_of_the_products_of_very_different_sites():
    net, step = bound(mlp(20, 40, 400, 400, 5), torch.rand(5, 20), 5, block_elements=2**19)
    items = all_items(net.estimator, step)
    by_count = sorted(items, key=lambda item: counted(net, step, item))
    assert sorted(items, key=lambda item: plan.item_work(step, item)) == by_count


def test_the_last_example_block_is_shorter():
    net, step = bound(mlp(10, 6, 4), torch.rand(13, 10), 4)
    first, *_, last = (item for item in net.estimator.items(step, 0) if item.site == "0")
    assert (first.example_block, last.example_block) == (0, 2)
    assert plan.work_of(step, last).flops / direction_count(last) == pytest.approx(
        plan.work_of(step, first).flops / direction_count(first) * 3 / 5
    )


def test_predictions_depend_only_on_the_configuration():
    predictions = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net, step = bound(mlp(10, 6, 4), torch.rand(13, 10), 4, seed=seed)
        predictions.append([plan.item_work(step, item) for item in all_items(net.estimator, step)])
    assert predictions[0] == predictions[1]


# ---------------------------------------------------------------- seconds


def test_costs_start_from_the_nominal_rate():
    net, step = bound(mlp(10, 6, 4), torch.rand(5, 10), 4)
    (item, *_) = net.estimator.items(step, 0)
    assert plan.Costs(rate=1e6).seconds(step, item) == plan.item_work(step, item) / 1e6


def test_costs_converge_to_the_measurements_and_inform_other_kinds():
    net, step = bound(mlp(10, 6, 4), torch.rand(5, 10), 4, block_elements=2**19)
    known, unknown = net.estimator.items(step, 0)
    costs = plan.Costs()
    costs.observe(step, known, 3.0)
    assert costs.seconds(step, known) == 3.0  # the nominal rate is forgotten at once
    costs.observe(step, known, 5.0)
    assert costs.seconds(step, known) == 4.0
    ratio = plan.item_work(step, unknown) / plan.item_work(step, known)
    assert costs.seconds(step, unknown) == pytest.approx(4.0 * ratio, rel=0.1)


def test_costs_follow_a_machine_that_gets_slower():
    net, step = bound(mlp(10, 6, 4), torch.rand(5, 10), 4, block_elements=2**19)
    item, other = net.estimator.items(step, 0)
    costs = plan.Costs()
    for _ in range(100):
        costs.observe(step, item, 1.0)
    assert costs.seconds(step, item) == pytest.approx(1.0)
    for _ in range(200):
        costs.observe(step, item, 2.0)
    assert costs.seconds(step, item) == pytest.approx(2.0, rel=1e-3)
    ratio = plan.item_work(step, other) / plan.item_work(step, item)
    assert costs.seconds(step, other) == pytest.approx(2.0 * ratio, rel=1e-3)


def test_the_mean_of_noisy_seconds_converges():
    net, step = bound(mlp(10, 6, 4), torch.rand(5, 10), 4)
    (item, *_) = net.estimator.items(step, 0)
    costs, stream = plan.Costs(), random.Random(0)
    for _ in range(500):
        costs.observe(step, item, stream.uniform(0.5, 1.5))
    # A mean that looks back on 20 has the standard error 0.29 / √39 = 0.046; 4 of them.
    assert costs.seconds(step, item) == pytest.approx(1.0, abs=0.19)


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize(
    ("seconds", "actors", "packed"),
    [
        ([], 2, [[], []]),
        ([1.0], 3, [[0], [], []]),
        ([1, 2, 3, 4], 1, [[3, 2, 1, 0]]),
        ([1, 1, 1, 1], 2, [[0, 2], [1, 3]]),  # ties by number
        ([3, 3, 2, 2, 2], 2, [[0, 2, 4], [1, 3]]),  # the classical case in which LPT gives 7, the best is 6
        ([2, 7, 4, 5], 2, [[1, 0], [3, 2]]),
    ],
)
def test_packing_by_hand(seconds, actors, packed):
    assert plan.pack(seconds, actors) == packed


def best_makespan(seconds: list[float], actors: int) -> float:
    """Returns the smallest possible load of the busiest actor, by exhaustive search."""
    loads = (
        [sum(s for s, at in zip(seconds, places, strict=True) if at == actor) for actor in range(actors)]
        for places in itertools.product(range(actors), repeat=len(seconds))
    )
    return min(map(max, loads))


@pytest.mark.parametrize("seed", range(20))
def test_packing_keeps_to_its_bound_and_loses_nothing(seed):
    stream = random.Random(seed)
    actors = stream.choice([2, 3])
    seconds = [stream.uniform(0.1, 5) for _ in range(stream.randint(1, 7))]
    packed = plan.pack(seconds, actors)
    assert sorted(itertools.chain(*packed)) == list(range(len(seconds)))
    best = best_makespan(seconds, actors)
    assert best <= plan.makespan(seconds, packed) * (1 + 1e-12)
    assert plan.makespan(seconds, packed) <= (4 / 3 - 1 / (3 * actors)) * best * (1 + 1e-12)


@pytest.mark.parametrize("actors", [1, 2, 3, 8, 500])
def test_lanes_hold_every_item_once_longest_first_and_are_balanced(actors):
    rng = random.Random(actors)
    seconds = [rng.choice([0.001, 0.002, 0.005]) for _ in range(300)]
    lanes = plan.lanes(seconds, actors)
    assert len(lanes) == actors
    order = [number for lane in lanes for number in lane]
    assert sorted(order) == list(range(300))
    assert order == sorted(order, key=lambda number: (-seconds[number], number))
    loads = [sum(seconds[number] for number in lane) for lane in lanes]
    assert max(loads) - min(loads) <= 2 * max(seconds)


@pytest.mark.parametrize("actors", [1, 2, 3, 8])
def test_batches_cut_each_lane_into_calls_that_get_shorter_and_are_worth_one(actors):
    rng = random.Random(actors)
    seconds = [rng.uniform(0.0005, 0.002) for _ in range(400)]
    calls = plan.batches(seconds, actors, 0.005)
    for actor, lane in enumerate(plan.lanes(seconds, actors)):
        mine = [call for number, call in calls if number == actor]
        assert [number for call in mine for number in call] == lane
        work = [sum(seconds[number] for number in call) for call in mine]
        assert min(work[:-1]) >= max(0.005, sum(seconds) / (10 * actors))
        assert all(later <= earlier + 0.002 for earlier, later in itertools.pairwise(work))
    assert [actor for actor, _ in calls[:actors]] == list(range(actors))  # all actors' first calls come first


def test_batches_of_no_items_and_of_few_items():
    assert plan.batches([], 3, 0.005) == []
    assert plan.batches([0.001, 0.002], 1, 0.005) == [(0, [1, 0])]
    assert plan.batches([1, 1, 1, 1], 2, 0.0) == [(0, [0]), (1, [2]), (0, [1]), (1, [3])]


# ---------------------------------------------------------------- bytes


def tape_of(net: glr_dist.GLR, step: Step, block: int = 0) -> Tape:
    with torch.no_grad(), net.network.hooked():
        return net.estimator.tape(step, 0, block)


def test_bytes_by_hand():
    net, step = bound(mlp(10, 6, 4), torch.rand(7, 10), 4, example_block=7, copies=8)
    parameters = 10 * 6 + 6 + 6 * 4 + 4
    # One scale for each of two sites; x in float32, y in int64.
    assert plan.state_bytes(step) == 4 * (parameters + 2 + 7 * 10) + 8 * 7
    # Logits and losses; both sites' items give δ, so no input travels.
    assert plan.tape_bytes(step, tape_of(net, step)) == 4 * 7 * (6 + 4 + 1)
    sizes = {item.site: plan.partial_bytes(step, item) for item in net.estimator.items(step, 0)}
    assert sizes == {"0": 4 * (7 * 6 + 1), "2": 4 * (7 * 4 + 1)}


def test_bytes_of_parameter_gradients_inputs_and_learned_scales_by_hand():
    noise = glr_dist.Gaussian(0.5, learn="unit")
    net, step = bound(mlp(10, 6, 4), torch.rand(64, 10), 4, example_block=60, copies=8, noise=noise)
    parameters = 10 * 6 + 6 + 6 * 4 + 4
    assert plan.state_bytes(step) == 4 * (parameters + 2 * (6 + 4) + 64 * 10) + 8 * 64
    # δ [60, 6] would be more than 66 parameters: the items form them, from x of the site, [n, 10] and [n, 6].
    assert plan.tape_bytes(step, tape_of(net, step)) == 4 * 60 * (6 + 4 + 1 + 10 + 6)
    assert plan.tape_bytes(step, tape_of(net, step, 1)) == 4 * 4 * (6 + 4 + 1 + 10 + 6)
    sizes = {item.site: plan.partial_bytes(step, item) for item in net.estimator.items(step, 0)}
    assert sizes == {"0": 4 * (66 + 6 + 1), "2": 4 * (28 + 4 + 1)}


def test_bytes_of_a_control_variate_by_hand():
    net, step = bound(mlp(10, 6, 4), torch.rand(7, 10), 4, example_block=7, copies=8, feedback="control_variate")
    # Besides what it sends without: a map [D, 4] and a number for each site, and derivatives by the outputs [7, 4].
    parameters = 10 * 6 + 6 + 6 * 4 + 4
    assert plan.state_bytes(step) == 4 * (parameters + 2 + 7 * 10 + 6 * 4 + 4 * 4 + 2) + 8 * 7
    assert plan.tape_bytes(step, tape_of(net, step)) == 4 * 7 * (6 + 4 + 1 + 4)
    sizes = {item.site: plan.partial_bytes(step, item) for item in net.estimator.items(step, 0)}
    assert sizes == {"0": 4 * (7 * 6 + 1 + 6 * 4), "2": 4 * (7 * 4 + 1 + 4 * 4)}


@pytest.mark.parametrize("learn", ["none", "site", "unit"])
@pytest.mark.parametrize("estimator", ["conditional", "layerwise", "joint", "pathwise"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_bytes_returned_are_those_of_the_partial_sums(network, estimator, learn):
    make, shape = network
    copies = 100 if estimator == "pathwise" else 4
    noise = glr_dist.Gaussian(0.5, learn=learn)
    net, step = bound(make(), torch.rand(8, *shape), 3, estimator=estimator, copies=copies, noise=noise)
    with reproducible(), torch.no_grad(), net.network.hooked():
        for item in net.estimator.items(step, 0):
            partial = net.estimator.partial(step, item, net.estimator.tape(step, 0, item.example_block))
            tensors = [*partial.grads.values(), *partial.scales.values(), *partial.delta.values(), partial.loss]
            assert plan.partial_bytes(step, item) == sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("learn", ["none", "unit"])
@pytest.mark.parametrize("estimator", ["conditional", "joint"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_bytes_are_those_of_the_payloads_that_layers_makes(network, estimator, learn):
    make, shape = network
    noise = glr_dist.Gaussian(0.5, learn=learn)
    model = nn.Sequential(make(), nn.BatchNorm1d(3).eval())
    model[1].requires_grad_(False)  # its buffers travel too
    net, step = bound(model, torch.rand(13, *shape), 3, estimator=estimator, noise=noise, copies=4)
    counted = [(plan.state_bytes(step), worker.state_of(step))]
    for block in step.example_blocks:
        tape = tape_of(net, step, block)
        counted.append((plan.tape_bytes(step, tape), worker.tapes_for_items(step, {block: tape})))
    for planned, sent in counted:  # each array begins at a multiple of 64 bytes
        arrays = len(re.findall("Place", repr(sent.value)))
        assert arrays
        assert planned <= sent.size < planned + 64 * arrays
