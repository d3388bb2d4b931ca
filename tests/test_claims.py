"""Claims exclude other processes from a folder, and end with their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from glr_dist.claims import ClaimedError, claim, claim_new, newest

HOLD = """
import sys, time
from glr_dist.claims import claim
held = claim(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the claim on `tmp_path / "run"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.process
def test_a_claimed_folder_is_refused_with_its_owner_and_is_free_once_the_owner_is_dead(holder, tmp_path):
    with pytest.raises(ClaimedError, match=rf"run: is in use by process {holder.pid} on .* since 20") as caught:
        claim(tmp_path / "run")
    assert "\n" not in str(caught.value)
    with claim(tmp_path / "run", "evaluation"):  # for another purpose
        pass
    holder.kill()
    holder.wait()
    with claim(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.process
def test_numbered_folders_that_many_processes_ask_for_are_all_different(tmp_path):
    code = "import sys; from glr_dist.claims import claim_new; print(claim_new(sys.argv[1], 'digits').path.name)"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "runs")], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    names = {process.communicate()[0].strip() for process in started}
    assert names == {f"digits-{number}" for number in range(1, 7)}


def test_a_process_may_claim_again_and_the_last_release_counts(tmp_path):
    first, second = claim(tmp_path), claim(tmp_path)
    first.release()
    first.release()
    assert json.loads((tmp_path / ".run.claim").read_text()).keys() == {"host", "pid", "since"}
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_is_forgotten_is_released(tmp_path):
    claim(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_does_not_follow_a_link(tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / ".run.claim").symlink_to(target)
    with pytest.raises(OSError):
        claim(tmp_path)
    assert target.read_text() == "kept"


def test_new_folders_are_numbered_after_the_highest(tmp_path):
    for name in ("digits-2", "digits-10", "digits-x", "digits-", "digits-3b", "other-99"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path, "digits") == tmp_path / "digits-10"
    with claim_new(tmp_path, "digits") as made:
        assert made.path == tmp_path / "digits-11"
    with claim_new(tmp_path / "deep" / "runs", "a[b]") as made:
        assert made.path.name == "a[b]-1"
    assert newest(tmp_path, "nothing") is None
