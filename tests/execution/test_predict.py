"""Predictions of whole steps: small cases by hand, and trends in the number of actors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import glr_dist
from glr_dist.estimators import Step
from glr_dist.estimators.work import direction_count
from glr_dist.execution import plan, predict
from glr_dist.execution.predict import Frames, Hardware, Load
from glr_dist.losses import cross_entropy
from glr_dist.planning import backprop

NO_FRAMES = Frames((0, "0"), 0.0)
FREE = Hardware(step=0.0, call=0.0, result=0.0, least_call=0.0, memory=math.inf)


def load(*items: float, serial: float = 0.0, back: int = 0, out: int = 0, frames: tuple[Frames, ...] = ()) -> Load:
    return Load(items, frames or (NO_FRAMES,) * len(items), serial, back, out)


def bound(batch: int = 6, **options: object) -> tuple[glr_dist.GLR, Step]:
    model = nn.Sequential(nn.Linear(10, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3))
    net = glr_dist.GLR(model, glr_dist.Gaussian(0.5), **{"copies": 8, "example_block": 4, **options})
    return net, net.bind(torch.rand(batch, 10), torch.arange(batch) % 3, cross_entropy)


# ---------------------------------------------------------------- layers


def test_layers_by_hand():
    work = load(3.0, 3.0, 2.0, serial=0.5, back=100, out=50)
    machine = Hardware(step=0.3, call=0.1, result=0.01, least_call=0.0, memory=1000, bandwidth=10, latency=0.2)
    found = predict.layers(work, machine, 2)
    # Calls: 3 | 3 | 2, as each is more than a quarter of what is left. LPT: {3, 2} and {3}.
    out = 2 * 50 / 1000 + 50 / 10 + 2 * 0.2  # two hops reach two actors and the driver
    back = 3 * 100 / 1000 + 100 / 10 + 0.2
    assert found.seconds == pytest.approx(0.5 + 0.3 + out + (0.2 + 5.0) + back)
    assert found.used == 2
    assert found.sent == 2 * 50 + 100
    assert found.rounds == 3
    assert found.waiting == pytest.approx(1 - 8 / (2 * found.seconds))


@pytest.mark.slow
def test_without_communication_costs_the_actors_share_equal_items():
    work = load(*[1.0] * 64, serial=2.0)
    for actors in (1, 2, 4, 8, 16, 32, 64):
        assert predict.layers(work, FREE, actors).seconds == pytest.approx(2.0 + 64 / actors)
    for actors in (128, 1024):
        found = predict.layers(work, FREE, actors)
        assert (found.seconds, found.used) == (3.0, 64)
        assert found.waiting == pytest.approx(1 - 64 / (3 * actors))


def test_a_step_is_never_faster_than_its_serial_part_and_its_longest_item():
    work = load(5.0, *[0.1] * 500, serial=1.0, back=10**6, out=10**6)
    for actors in predict_numbers():
        assert predict.layers(work, Hardware(), actors).seconds > 6.0


def predict_numbers() -> list[int]:
    return [2**power for power in range(11)]


def test_the_time_to_handle_results_bounds_the_step():
    work = load(*[1.0] * 1000)
    machine = Hardware(step=0.0, call=0.5, result=0.1, least_call=0.0, memory=math.inf)
    assert predict.layers(work, machine, 1000).seconds == pytest.approx(0.5 + 1000 * 0.1)


def test_more_actors_wait_more_and_send_more():
    work = load(*[0.01] * 300, serial=0.001, back=3 * 10**6, out=10**5)
    found = [predict.layers(work, Hardware(bandwidth=1e9, latency=1e-5), actors) for actors in predict_numbers()]
    assert [p.sent for p in found] == sorted(p.sent for p in found)
    assert [p.waiting for p in found] == sorted(p.waiting for p in found)
    assert [p.rounds for p in found] == sorted(p.rounds for p in found)
    assert found[5].seconds < found[0].seconds / 10


def test_an_actor_makes_each_frame_once():
    first, second = Frames((0, "a"), 2.0), Frames((0, "b"), 3.0)
    work = load(1.0, 1.0, 1.0, 1.0, frames=(first, first, second, second))
    assert work.of_actor([0, 1]) == 2.0 + 2.0
    assert work.of_actor([0, 1, 2]) == 3.0 + 5.0
    assert work.inline() == 4.0 + 5.0
    assert predict.layers(work, FREE, 1).seconds == 9.0
    assert predict.layers(work, FREE, 4).seconds == 4.0  # of one item and the longer frame


def test_inline_divides_items_among_threads():
    work = load(*[1.0] * 8, serial=3.0)
    assert work.inline() == 11.0
    assert work.inline(2) == 7.0


@pytest.mark.parametrize(
    ("item", "threads", "actors", "layers"),
    [
        (0.0001, 1, 8, False),  # calls cost more than there is to gain
        (0.1, 1, 8, True),
        (0.1, 8, 8, False),  # threads do the same for nothing
        (0.1, 2, 8, True),
        (0.1, 1, 1, False),
    ],
)
def test_layers_is_chosen_if_it_is_faster(item, threads, actors, layers):
    assert predict.layers_pay(load(*[item] * 32, serial=0.001), Hardware(), threads, actors) is layers


def test_layers_is_not_chosen_if_sending_takes_longer_than_computing():
    assert not predict.layers_pay(load(*[0.01] * 32, back=4 * 10**9), Hardware(), 1, 32)


def test_the_load_of_a_step():
    net, step = bound(passes=3)
    items = predict.all_items(net.estimator, step)
    found = predict.load_of(net.estimator, step, 1000, lambda item: direction_count(item), 0.5)
    assert found.items == tuple(map(direction_count, items))
    assert found.back == sum(plan.partial_bytes(step, item) for item in items)
    assert found.out == plan.state_bytes(step) + 3 * 1000
    assert {frames.group for frames in found.frames} == {(m, name) for m in range(3) for name in ("0", "2", "4")}


def test_the_work_of_the_driver_by_hand():
    net, step = bound(passes={"0": 1, "*": 2}, example_block=2)
    parameters, weights = 10 * 6 + 6 + 6 * 4 + 4 + 4 * 3 + 3, (10 * 6, 6 * 4, 4 * 3)
    assert all(step.keeps_delta(site) for site in step.network.sites)
    shared = 2 * 6 * (2 * sum(weights) + (plan._NOISE + plan._ACTIVATION) * (6 + 4 + 3))
    formed = 6 * 2 * (weights[0] + 2 * weights[1] + 2 * weights[2])
    work, passes = predict.serial_work(net.estimator, step)
    assert work == shared + formed + 10 * parameters
    assert passes == 2 * 3


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"estimator": "joint"}, 2),  # a noise-free pass of two example blocks, for the baseline
        ({"estimator": "joint", "baseline": "none"}, 0),
        ({"estimator": "pathwise", "copies": 100}, 0),
        ({"estimator": "layerwise"}, 2),
    ],
)
def test_the_driver_runs_only_shared_passes(options, passes):
    net, step = bound(**options)
    assert predict.serial_work(net.estimator, step)[1] == passes


# ---------------------------------------------------------------- backpropagation


def test_data_parallel_by_hand():
    _, step = bound(batch=6)
    machine = Hardware(rate=1e6, block=0.01, bandwidth=1e4, latency=0.5)
    example = 3 * plan.pass_work(step, noisy=False) / 1e6
    gradients = 4 * (10 * 6 + 6 + 6 * 4 + 4 + 4 * 3 + 3)
    one, four, many = (backprop.data_parallel(step, machine, gpus) for gpus in (1, 4, 100))
    assert one.seconds == pytest.approx(6 * example + 0.03)
    assert (one.sent, one.rounds, one.waiting) == (0, 0, 0)
    compute = 2 * example + 0.03  # two of six examples
    assert four.seconds == pytest.approx(compute / 3 + 2 * 3 / 4 * gradients / 1e4 + 6 * 0.5)
    assert four.sent == 4 * 2 * 3 / 4 * gradients
    assert four.rounds == 6
    assert many.used == 6  # at least one example each
    assert many.waiting > four.waiting > 0


def test_an_all_reduce_that_is_faster_than_the_backward_pass_costs_nothing():
    _, step = bound(batch=6)
    machine = Hardware(rate=1e3, block=0.0, bandwidth=1e12)
    assert backprop.data_parallel(step, machine, 3).waiting == pytest.approx(0.0)
    one, three = (backprop.data_parallel(step, machine, gpus).seconds for gpus in (1, 3))
    assert three == pytest.approx(one / 3)


def test_pipeline_by_hand():
    _, step = bound(batch=6)
    machine = Hardware(rate=1e3, block=0.0, bandwidth=1e4, latency=0.5)
    whole = 6 * 3 * plan.pass_work(step, noisy=False) / 1e3
    one, two, many = (backprop.pipeline(step, machine, gpus) for gpus in (1, 2, 100))
    assert one.seconds == pytest.approx(whole)
    assert (one.sent, one.rounds) == (0, 0)
    # Two stages, six micro-batches of one example; the cut is where four activations pass, not six.
    assert two.seconds == pytest.approx((6 + 1) / 6 * whole / 2 + 2 * (0.5 + 4 * 4 / 1e4))
    assert two.sent == 2 * 6 * 4 * 4
    assert two.rounds == 2
    assert many.used == 3  # stages end at sites
    assert many.sent == 2 * 6 * (6 + 4) * 4


def test_the_bubble_of_a_pipeline():
    _, step = bound(batch=8)
    found = backprop.pipeline(step, Hardware(rate=1e3, block=0.0), 3)
    assert found.waiting == pytest.approx((3 - 1) / (8 + 3 - 1))


def test_a_pipeline_uses_few_micro_batches_if_launching_a_pass_dominates():
    _, step = bound(batch=8)
    found = backprop.pipeline(step, Hardware(rate=1e15, block=1.0), 3)
    assert found.seconds == pytest.approx(3.0)  # one micro-batch, stage after stage
