"""Run folders: the files of a run, and claims that exclude other processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from glr_dist.errors import ConfigError
from glr_dist.runs import ClaimedError, ReadOnlyRunFolder, RunFolder, claim, claim_new, deciding, newest

HOLD = """
import sys, time
from glr_dist.runs import claim
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
    code = "import sys; from glr_dist.runs import claim_new; print(claim_new(sys.argv[1], 'digits').path.name)"
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


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run of glr-dist train") as caught:
        RunFolder(tmp_path).config()
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back(tmp_path, tiny):
    folder = RunFolder(tmp_path / "run")
    folder.begin(tiny())
    assert folder.exists
    assert folder.config() == tiny()
    assert folder.metrics() == []
    folder.append_metrics({"epoch": 1})
    folder.append_metrics({"epoch": 2})
    with folder.metrics_file.open("a") as file:
        file.write('{"epoch": 3')  # half written
    assert folder.metrics() == [{"epoch": 1}, {"epoch": 2}]
    folder.replace_metrics([{"epoch": 1}])
    assert folder.metrics() == [{"epoch": 1}]
    folder.write_summary({"seed": 0})
    assert folder.summary() == {"seed": 0}
    with pytest.raises(ConfigError, match="not empty; continue it with --resume"):
        folder.begin(tiny())


def test_a_read_only_folder_writes_nothing(tmp_path, tiny):
    folder = ReadOnlyRunFolder(tmp_path / "run")
    folder.begin(tiny())
    folder.append_metrics({"epoch": 1})
    folder.replace_metrics([])
    folder.write_checkpoint("epoch-00001.pt", lambda path: path.write_bytes(b""))
    folder.write_summary({})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("execution.threads=1", True),
        ("data.root=/elsewhere", True),
        ("data.download=false", True),
        ("training.keep_checkpoints=5", True),
        ("diagnose.draws=3", True),
        ("tracking.experiment=other", True),
        ("seed=1", False),
        ("data.split_seed=1", False),
        ("training.epochs=4", False),
        ("noise.scale={'*': 0.5}", False),
    ],
)
def test_settings_that_decide_the_result(tiny, override, same):
    assert (deciding(tiny()) == deciding(tiny(override))) == same
