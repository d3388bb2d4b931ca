"""The pool: it answers every call exactly once, even if actors die or freeze."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
import ray
from ray import cloudpickle
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from glr_dist.errors import ClusterError
from glr_dist.execution import pool as pool_module
from glr_dist.execution.cluster import connect
from glr_dist.execution.pool import Call, Pool

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors' processes cannot import a test
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


class Server:
    """The object inside the actors of these tests."""

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.seen: list[int] = []

    def square(self, number: int) -> int:
        return self.base + number * number

    def slow_square(self, number: int, seconds: float) -> int:
        time.sleep(seconds)
        return number * number

    def fail(self, number: int) -> int:
        raise KeyError(f"number {number}")

    def where(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def fail_untransferably(self, unpicklable: bool) -> int:
        raise Unpicklable() if unpicklable else Unreconstructible(1, "cannot be built again")

    def die(self) -> None:
        os._exit(1)

    def total(self, values: list[int]) -> tuple[int, int]:
        self.seen.append(id(values))
        return sum(values), len(set(self.seen))


class Unpicklable(Exception):
    def __reduce__(self) -> tuple:
        raise TypeError("no")


class Unreconstructible(Exception):
    """An exception that can be pickled but not unpickled."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)


class FailsToStart:
    def __init__(self) -> None:
        raise RuntimeError("no libcuda")


@pytest.fixture
def make() -> Iterator[Callable[..., Pool]]:
    """Makes pools, by default of `Server`; closes them after the test."""
    made = []

    def pool(actors: int | None = 2, kind: type = Server, arguments: tuple = (), **options: object) -> Pool:
        made.append(Pool(kind, arguments, actors, **{"cpus": 1, **options}))
        return made[-1]

    yield pool
    for each in made:
        each.close()


def squares(numbers: range) -> list[Call]:
    return [Call("square", (number,)) for number in numbers]


def groups_in_use() -> list[str]:
    return [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]


def healthy_pids(pool: Pool) -> list[int]:
    """Waits until all actors of a pool are healthy; returns their process ids."""
    assert until(lambda: bool(list(pool.run(squares(range(2))))) and len(pool.pids) == len(pool))
    return pool.pids


def wait_for_free_cpus() -> None:
    """Waits until Ray knows that the actors of other tests are gone."""
    assert until(lambda: ray.available_resources().get("CPU") == 4)


def until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Waits until a condition holds; returns whether it did in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


# ---------------------------------------------------------------- calls


def test_every_call_is_answered_once_with_its_index(make):
    pool = make(2, arguments=(1000,))
    for _ in range(2):
        answers = list(pool.run(squares(range(50))))
        assert sorted(answers) == [(n, 1000 + n * n) for n in range(50)]
    assert list(pool.run([])) == []


def test_answers_arrive_in_the_order_of_completion(make):
    pool = make(2)
    healthy_pids(pool)
    calls = [Call("slow_square", (0, 1.0)), *squares(range(1, 4))]
    assert [place for place, _ in pool.run(calls)] == [1, 2, 3, 0]  # the other actor makes all other calls


def test_calls_are_taken_only_when_an_actor_will_soon_be_free(make):
    taken = 0

    def calls() -> Iterator[Call]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield Call("square", (number,))

    pool = make(2)
    healthy_pids(pool)
    for answered, _ in enumerate(pool.run(calls())):
        assert taken - answered <= 3 * 2 + 1


def test_the_source_of_calls_may_itself_run_calls(make):
    pool = make(2)

    def calls() -> Iterator[Call]:
        for number in range(6):
            ((_, squared),) = pool.run([Call("square", (number,))])
            yield Call("square", (squared,))

    assert sorted(pool.run(calls())) == [(n, n**4) for n in range(6)]


def test_an_error_reaches_the_caller_unchanged_and_the_pool_stays_usable(make):
    pool = make(2)
    for _ in range(3):
        with pytest.raises(KeyError, match="number 7"):
            list(pool.run([*squares(range(5)), Call("fail", (7,)), *squares(range(5))]))
    started = time.monotonic()
    assert len(list(pool.run(squares(range(10))))) == 10
    assert time.monotonic() - started < 30  # no actor had to be replaced
    assert pool.restarts == 0


@pytest.mark.parametrize("unpicklable", [True, False])
def test_an_error_that_cannot_be_transferred_is_not_a_lost_actor(make, unpicklable):
    pool = make(1)
    with pytest.raises(Exception) as caught:
        list(pool.run([Call("fail_untransferably", (unpicklable,))]))
    assert not isinstance(caught.value, ClusterError)
    assert pool.restarts == 0
    assert sorted(pool.run(squares(range(3)))) == [(0, 0), (1, 1), (2, 4)]


def test_actors_that_answered_while_this_process_was_busy_are_not_restarted(make):
    pool = make(3, hang_timeout=1)
    healthy_pids(pool)
    answers = pool.run([Call("slow_square", (number, 0.1)) for number in range(12)])
    found = [next(answers)]
    time.sleep(2.5)
    assert sorted([*found, *answers]) == [(n, n * n) for n in range(12)]
    assert pool.restarts == 0


def test_restarts_are_reported_once(make):
    pool = make(1)
    (pid,) = healthy_pids(pool)
    answers = pool.run([Call("slow_square", (number, 0.2)) for number in range(4)])
    next(answers)
    os.kill(pid, signal.SIGKILL)
    assert len(list(answers)) == 3
    assert [pool.progress()["actor_restarts"] for _ in range(2)] == [1, 0]


def test_answers_of_an_abandoned_run_are_ignored(make):
    pool = make(1)
    answers = pool.run([Call("slow_square", (number, 0.2)) for number in range(20)])
    assert next(answers) == (0, 0)
    answers.close()
    assert sorted(pool.run(squares(range(3)))) == [(0, 0), (1, 1), (2, 4)]


def test_calls_go_to_their_preferred_actor_unless_another_is_idle(make):
    pool = make(2)
    healthy_pids(pool)
    calls = [Call("where", (0.2,), number % 2) for number in range(12)]
    found = dict(pool.run(calls))
    assert all(found[place] == found[place % 2] for place in range(12))
    assert found[0] != found[1]
    to_one = [pid for _, pid in pool.run([Call("where", (0.2,), 0)] * 12)]
    assert {*to_one} == {found[0], found[1]}


@pytest.mark.parametrize("actors", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_restarted_actor_gets_the_shared_values_again(make, actors):
    pool = make(actors, hang_timeout=5)
    values = pool.share("values", [1, 2, 3])
    healthy_pids(pool)
    for answered, (_, (total, _)) in enumerate(pool.run([Call("total", (values,))] * 40)):
        assert total == 6
        if answered in (10, 20):
            with suppress(ProcessLookupError):  # it is still restarting
                os.kill(pool.pids[0], signal.SIGKILL)
    assert 1 <= pool.restarts <= 2


def test_a_shared_value_is_fetched_once_per_actor_and_version(make):
    pool = make(1)
    first, other = pool.share("values", [1, 2, 3]), pool.share("others", [10])
    answers = [answer for _, answer in pool.run([Call("total", (first,))] * 3)]
    assert answers == [(6, 1)] * 3  # the same object every time
    ((_, (total, objects)),) = pool.run([Call("total", (other,))])
    assert (total, objects) == (10, 2)
    newer = pool.share("values", [4])
    assert [total for _, (total, _) in pool.run([Call("total", (newer,)), Call("total", (first,))])] == [4, 6]


def test_actor_processes_are_named_after_their_role(make):
    (pid,) = healthy_pids(make(1, role="Layers"))
    assert psutil.Process(pid).cmdline()[0].startswith("ray::GLRLayersActor")


# ---------------------------------------------------------------- actors that die, freeze or cannot start


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)], ids=lambda number: number.name
)
def test_lost_calls_are_repeated(make, number):
    pool = make(2, hang_timeout=2)
    victim, _ = healthy_pids(pool)
    answers = []
    for answer in pool.run([Call("slow_square", (index, 0.1)) for index in range(30)]):
        if len(answers) == 5:
            os.kill(victim, number)
        answers.append(answer)
    assert sorted(answers) == [(n, n * n) for n in range(30)]
    assert pool.restarts == 1
    assert victim not in healthy_pids(pool)  # a new actor took its place


@pytest.mark.long
def test_if_all_actors_die_calls_wait_until_one_has_restarted(make):
    pool = make(2)
    pids = healthy_pids(pool)
    answers = pool.run([Call("slow_square", (number, 0.2)) for number in range(8)])
    found = [next(answers)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert sorted([*found, *answers]) == [(n, n * n) for n in range(8)]
    assert pool.restarts == 2


@pytest.mark.long
def test_a_call_that_exceeds_the_timeout_gets_more_time_when_repeated(make):
    pool = make(1, hang_timeout=0.5)
    list(pool.run(squares(range(1))))
    assert list(pool.run([Call("slow_square", (3, 1.5))])) == [(0, 9)]
    assert pool.restarts == 2  # after 0.5 s and 1 s


@pytest.mark.long
def test_the_pool_gives_up_on_a_call_that_kills_every_actor(make, monkeypatch):
    monkeypatch.setattr(pool_module, "_MAX_LOSSES", 3)
    pool = make(2)
    with pytest.raises(ClusterError, match="one call lost 3 actors") as caught:
        list(pool.run([Call("die", ())]))
    assert "\n" not in str(caught.value)
    assert sorted(pool.run(squares(range(3)))) == [(0, 0), (1, 1), (2, 4)]


@pytest.mark.long
def test_the_pool_gives_up_on_actors_that_cannot_start_and_names_the_reason(make):
    pool = make(1, kind=FailsToStart)
    with pytest.raises(ClusterError, match=r"died 3 times while starting.*no libcuda") as caught:
        list(pool.run(squares(range(3))))
    assert "\n" not in str(caught.value)


def test_the_pool_gives_up_after_a_long_time_without_a_healthy_actor(make, monkeypatch):
    pool = make(1)
    list(pool.run(squares(range(1))))
    monkeypatch.setattr(pool_module, "_MAX_SILENCE", 0.0)
    with pytest.raises(ClusterError, match=r"no actor has answered for [01] s; the cluster has 4 CPU"):
        for _, pid in zip(range(20), [pool.pids[0]] * 20, strict=True):
            if pid in pool.pids:
                os.kill(pid, signal.SIGKILL)
            list(pool.run([Call("slow_square", (1, 0.2))] * 5))


# ---------------------------------------------------------------- placement


@pytest.mark.parametrize(("cpus", "actors"), [(1, 4), (2, 2), (1.5, 2), (3, 1)])
def test_by_default_as_many_actors_start_as_fit(make, cpus, actors):
    wait_for_free_cpus()
    assert len(make(None, cpus=cpus)) == actors


def test_resources_in_use_are_not_counted(make):
    wait_for_free_cpus()
    make(3)
    assert until(lambda: ray.available_resources()["CPU"] == 1)
    assert len(make(None)) == 1


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"gpus": 3}, ["no room for 2 x (1 CPU and 3 GPU); the cluster has", "4 CPU (4 free) and 2 GPU (2 free)"]),
        ({"cpus": 5}, ["no room for 2 x (5 CPU)"]),
    ],
)
def test_a_request_that_does_not_fit_names_the_request_and_the_resources(make, request_, words):
    assert until(lambda: not groups_in_use())
    started = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        make(2, placement_timeout=1, **request_)
    assert time.monotonic() - started < 30
    for word in [*words, "execution.actors", "execution.placement_timeout (1 s)"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert until(lambda: not groups_in_use())


def test_a_closed_pool_leaves_nothing_behind(make):
    pool = make(2)
    pids = healthy_pids(pool)
    assert len(groups_in_use()) == 1
    pool.close()
    pool.close()  # twice does no harm
    assert until(lambda: not groups_in_use())
    assert until(lambda: not any(alive(pid) for pid in pids))
    assert ray.is_initialized()  # it was running before the pool
    assert not connect()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.long
def test_inside_a_trial_the_actors_use_its_placement_group():
    group = placement_group([{"CPU": 1}, {"CPU": 1}, {"CPU": 1}])
    assert group.wait(30)

    @ray.remote(num_cpus=1)
    def trial(actors: int | None) -> object:
        try:
            pool = Pool(Server, (), actors)
        except ClusterError as error:
            return str(error)
        answers = sorted(pool.run(squares(range(4))))
        found = len(pool), answers, len(placement_group_table())
        pool.close()
        return found

    place = PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
    )
    before = len(placement_group_table())
    try:
        size, answers, groups = ray.get(trial.options(scheduling_strategy=place).remote(2), timeout=60)
        assert (size, groups) == (2, before)  # the pool makes no other group
        assert answers == [(n, n * n) for n in range(4)]
        size, _, _ = ray.get(trial.options(scheduling_strategy=place).remote(None), timeout=60)
        assert size == 2  # the trial itself takes one of the three
        for number in (3, 9):
            message = ray.get(trial.options(scheduling_strategy=place).remote(number), timeout=60)
            assert f"execution.actors: no room for {number} x (1 CPU)" in message
        assert "placement group has" in message
    finally:
        remove_placement_group(group)
