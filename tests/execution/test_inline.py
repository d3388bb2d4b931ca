"""Inline: ordered, bounded, and the same for every number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from glr_dist.execution import inline
from glr_dist.execution.inline import Inline


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_arguments(threads):
    gate = threading.Event()

    def function(number: int) -> int:
        # With several threads the first item ends last: it waits until a later one has run.
        if threads > 1:
            if number:
                gate.set()
            else:
                assert gate.wait(60)
        return number * number

    assert list(Inline(threads).map(function, range(40))) == [n * n for n in range(40)]


def test_several_threads_work_at_a_time():
    together = threading.Barrier(3)  # passes only when three items are under way at once
    ranks = list(Inline(3).map(lambda _: together.wait(60), range(3)))
    assert sorted(ranks) == [0, 1, 2]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_results_in_memory_is_bounded(threads):
    taken = 0

    def arguments() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = Inline(threads).map(lambda number: number, arguments())
    for received in range(1, 20):
        next(results)
        assert taken - received <= 2 * threads + 1


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_an_item_reaches_the_caller_and_leaves_the_executor_usable(threads):
    executor = Inline(threads)

    def function(number: int) -> int:
        if number == 3:
            raise KeyError("item 3")
        return number

    with pytest.raises(KeyError, match="item 3"):
        list(executor.map(function, range(10)))
    assert list(executor.map(lambda number: number, range(10))) == list(range(10))


@pytest.mark.parametrize("threads", [1, 2])
def test_no_items_give_no_results(threads):
    assert list(Inline(threads).map(lambda number: number, [])) == []


def test_the_default_number_of_threads_is_that_of_torch():
    assert Inline().threads == torch.get_num_threads()
    assert Inline(7).threads == 7


class Where:
    """An estimator whose items tell whether they ran in the main thread."""

    def partial(self, step, item, tape):
        return threading.current_thread() is threading.main_thread()


def ran_here(executor, device="cpu", estimator=None):
    step = SimpleNamespace(device=torch.device(device))
    items = [[SimpleNamespace(item=number, tape=None) for number in range(6)]]
    return [here for _, here in executor.partials(estimator or Where(), step, items)]


@pytest.mark.parametrize(("device", "alone"), [("cpu", False), ("cuda", True)])
def test_items_of_a_gpu_follow_one_another_in_this_thread(device, alone):
    """Several threads that call torch's linear algebra on a GPU for the first time even fail."""
    assert ran_here(Inline(3), device) == [alone] * 6


@pytest.mark.parametrize(("least", "alone"), [(float("inf"), True), (-1.0, False)])
def test_after_a_step_with_too_little_work_for_several_threads_items_run_in_this_one(monkeypatch, least, alone):
    monkeypatch.setattr(inline, "_HANDOVER", least)
    executor = Inline(3)
    assert ran_here(executor) == [False] * 6
    assert ran_here(executor) == [alone] * 6
    monkeypatch.setattr(inline, "_HANDOVER", -1.0)  # there is more work again
    ran_here(executor)
    assert ran_here(executor) == [False] * 6


def test_one_long_item_among_short_ones_is_too_little_work_for_several_threads(monkeypatch):
    monkeypatch.setattr(inline, "_HANDOVER", 0.25)

    class Slow(Where):
        def partial(self, step, item, tape):
            time.sleep(0.3 if item == 0 else 0)
            return super().partial(step, item, tape)

    executor = Inline(3)
    assert ran_here(executor, estimator=Slow()) == [False] * 6
    assert ran_here(executor) == [True] * 6


def test_a_single_item_runs_in_this_thread():
    assert list(Inline(3).map(lambda _: threading.current_thread() is threading.main_thread(), [0])) == [True]
