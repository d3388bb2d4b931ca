"""Inline: ordered, bounded, and the same for every number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from glr_dist.execution.inline import Inline, one_thread


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


def test_items_run_with_one_torch_thread():
    with one_thread():
        assert set(Inline(2).map(lambda _: torch.get_num_threads(), range(8))) == {1}


def test_one_thread_restores_the_number_of_threads_even_after_an_error():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_default_number_of_threads_is_that_of_torch():
    assert Inline().threads == torch.get_num_threads()
    assert Inline(7).threads == 7
