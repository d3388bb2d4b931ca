"""The watch of a local Ray, tested with fake processes that only have exit codes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from glr_dist.errors import ClusterError
from glr_dist.execution import watch
from glr_dist.execution.watch import LostRayError, exited, explained


@pytest.fixture
def codes(monkeypatch) -> Iterator[dict[str, int | None]]:
    """Exit codes of a watched raylet and GCS; None while the process runs."""
    found: dict[str, int | None] = {"raylet": None, "gcs_server": None}
    monkeypatch.setattr(watch, "_INTERVAL", 0.01)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    watch.begin([exited(name, lambda name=name: found[name]) for name in found], lambda: True, local=True)
    yield found
    watch.end(killed=False)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("code", "words"), [(-9, "was killed by SIGKILL"), (1, "ended with code 1")])
def test_a_death_interrupts_the_main_thread_and_is_explained(codes, code, words):
    with (
        pytest.raises(LostRayError, match=rf"^Ray's raylet process on this machine {words}; see there$"),
        explained(),  # whose advice is less specific
        explained(lambda: "; see there"),
    ):
        codes["raylet"] = code
        time.sleep(5)
    assert watch.unresponsive()
    with pytest.raises(ClusterError, match=words):
        watch.check()


def test_any_error_after_a_death_is_explained(codes):
    with pytest.raises(LostRayError, match="gcs_server"), explained():
        codes["gcs_server"] = -9
        try:
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError("of Ray") from None


def test_other_errors_stay_as_they_are(codes):
    with pytest.raises(ValueError, match="other"), explained():
        raise ValueError("other")
    watch.check()


@pytest.mark.parametrize("hurried", [False, True])
def test_an_expected_end_is_not_a_loss(codes, hurried):
    watch.expect_end(hurried=hurried)
    codes["raylet"] = 0
    time.sleep(0.1)
    watch.check()
    assert watch.unresponsive()


def test_a_ray_that_this_process_has_shut_down_is_not_a_loss(monkeypatch):
    monkeypatch.setattr(watch, "_INTERVAL", 0.01)
    watch.begin([exited("raylet", lambda: 0)], lambda: False, local=True)
    time.sleep(0.1)
    watch.check()
    watch.end(killed=False)


HANGS = """
import time
from glr_dist.execution import watch
watch._GRACE = 0.2
code = []
with watch.explained(lambda: "; see there"):
    watch.begin([watch.exited("raylet", lambda: code[0] if code else None)], lambda: True, local=True)
    code.append(-9)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


def test_the_watch_prints_the_line_and_ends_a_process_whose_main_thread_hangs(python):
    done = python(HANGS)
    assert done.returncode == 2
    assert done.stderr == "glr-dist: Ray's raylet process on this machine was killed by SIGKILL; see there\n"


def test_after_a_killed_ray_no_other_one_is_started(codes):
    watch.expect_end(hurried=True)
    watch.end(killed=True)
    with pytest.raises(ClusterError, match="start another process"):
        watch.check()
