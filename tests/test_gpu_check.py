"""The check of a GPU machine: its report, its parts on the CPU, and what it does without a GPU."""

from __future__ import annotations

import json
import re
import runpy
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "jobs" / "gpu_check.py"


@pytest.fixture(scope="module")
def job():
    return runpy.run_path(str(SCRIPT), run_name="gpu_check")


def test_without_a_gpu_it_ends_in_one_line(job, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert job["main"]([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("gpu_check: this machine has no CUDA device; --device cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digests"], "PART: 'digests' is not allowed; did you mean 'digest'?"),
        (["--gpus", "3"], "--gpus: 3 is not allowed: a number from 1 on, and this machine has 2"),
        (["--gpus", "0"], "--gpus: 0 is not allowed"),
        (["--json", "/nowhere/at/all.json"], "--json: the folder of /nowhere/at/all.json does not exist"),
    ],
)
def test_an_error_of_the_user_ends_in_one_line(job, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert job["main"](arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gpu_check: {said}")


def run_here(job, monkeypatch, *, without=()):
    """Lets each part run in this process; those of `without` leave no result, as after a crash."""

    def in_process(part, setting, timeout):
        if part in without:
            return job["Result"](part, "failed", "its process ended with exit code -11", 1.0, [])
        return job["_run"](part, setting)

    monkeypatch.setitem(job["main"].__globals__, "in_process", in_process)


def test_a_part_that_fails_does_not_stop_the_others(job, monkeypatch, capsys, tmp_path):
    def fails(setting):
        raise RuntimeError("CUDA error:\nan illegal memory access")

    def differs(setting):
        return job["Found"]([{"network": "MLP | x", "seconds": 0.123456}], "params_sha256 differs: MLP")

    def passes(setting):
        """It passes."""
        return job["Found"]([{"K": 256, "peak MiB": 12.3456}, {"K": 1024, "note": "flat"}])

    parts = {"digest": fails, "rate": differs, "memory": passes, "replicas": passes}
    for name, part in parts.items():
        monkeypatch.setitem(job["PARTS"], name, part)
    run_here(job, monkeypatch, without=["replicas"])
    file = tmp_path / "found.json"
    assert job["main"](["--device", "cpu", "--json", str(file), "tests", *parts]) == 1
    printed = capsys.readouterr()
    outcome = {name: text.splitlines()[2] for name, text in re.findall(r"## (\w+)(.*?)(?=\n## |\Z)", printed.out, re.S)}
    assert outcome["tests"].startswith("left out after 0 s: it needs CUDA")
    assert outcome["digest"].endswith("RuntimeError: CUDA error: an illegal memory access")
    assert outcome["rate"] == "failed after 0 s: params_sha256 differs: MLP"
    assert outcome["memory"] == "passed after 0 s"
    assert outcome["replicas"] == "failed after 1 s: its process ended with exit code -11"
    assert "| MLP \\| x | 0.1235 |" in printed.out.splitlines()
    assert "\n## memory: It passes\n\npassed after 0 s\n\n| K | peak MiB | note |\n| --- | --- | --- |\n" in printed.out
    assert "[5/5] replicas" in printed.err
    found = json.loads(file.read_text())
    assert [(each["part"], each["result"]) for each in found["parts"]] == [
        ("tests", "left out"), ("digest", "failed"), ("rate", "failed"), ("memory", "passed"), ("replicas", "failed"),
    ]  # fmt: skip
    assert found["torch"] == torch.__version__
    monkeypatch.setitem(job["PARTS"], "digest", passes)
    assert job["main"](["--device", "cpu", "digest", "tests"]) == 0


def test_parts_that_have_ended_are_reported_before_the_next_begins(job, monkeypatch, capsys, tmp_path):
    file = tmp_path / "found.json"

    def ends(setting):
        return job["Found"]([{"K": 1}])

    def interrupted(setting):
        raise KeyboardInterrupt

    monkeypatch.setitem(job["PARTS"], "digest", ends)
    monkeypatch.setitem(job["PARTS"], "rate", interrupted)
    run_here(job, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        job["main"](["--device", "cpu", "digest", "rate", "--json", str(file)])
    assert "passed after 0 s\n\n| K |" in capsys.readouterr().out
    assert [each["part"] for each in json.loads(file.read_text())["parts"]] == ["digest"]


@pytest.mark.process
def test_a_part_that_hangs_or_dies_is_a_failure(job, monkeypatch, tmp_path):
    setting = job["Setting"]("cpu", 1)
    monkeypatch.setitem(job["in_process"].__globals__, "sys", sys)
    for code, limit, reason in (
        ("import os; os._exit(3)", 60, "its process ended with exit code 3"),
        ("import time; time.sleep(60)", 0.5, "no result within 0.5 s"),
    ):
        script = tmp_path / "dies.py"
        script.write_text(code)
        monkeypatch.setitem(job["in_process"].__globals__, "__file__", str(script))
        found = job["in_process"]("rate", setting, limit)
        assert (found.result, found.reason, found.rows) == ("failed", reason, [])


def test_digests_that_differ_within_a_network_are_named(job):
    rows = [{"network": name, "params_sha256": digest} for name, digest in (("a", "1"), ("b", "2"), ("a", "1"))]
    assert job["differing"](rows) == ""
    assert job["differing"]([*rows, {"network": "b", "params_sha256": "3"}]) == "params_sha256 differs: b"


def test_memory_that_grows_with_the_copies_is_a_failure(job):
    rows = [{"K": 256, "peak MiB": 40.0}, {"K": 1024, "peak MiB": 44.0}, {"K": 4096, "peak MiB": 52.0}]
    assert job["grown"](rows) == ""
    rows[-1]["peak MiB"] = 160.0
    assert job["grown"](rows) == "the peak grows 4.00 times from K = 256 to 4096"


@pytest.mark.parametrize(
    ("cases", "wrong", "told"),
    [
        ("<testcase name='a'/><testcase name='b'/>", "", "2 passed, 0 failed, 0 skipped"),
        ("<testcase name='a'/><testcase name='b'><failure/></testcase>", "1 tests failed", "1 passed, 1 failed"),
        ("<testcase name='a'><error/></testcase>", "1 tests failed", "0 passed, 1 failed, 0 skipped"),
        ("<testcase name='a'><skipped/></testcase>", "no test ran", "0 passed, 0 failed, 1 skipped"),
        ("", "no test ran", "0 passed"),
    ],
)
def test_the_outcome_of_the_tests_is_read_from_their_report(job, cases, wrong, told):
    found = job["tested"](xml.etree.ElementTree.fromstring(f"<testsuites><testsuite>{cases}</testsuite></testsuites>"))
    assert found.wrong == wrong
    assert told in found.rows[-1]["outcome"]
    assert [row["test"] for row in found.rows[:-1]] == [name for name in "ab" if f"'{name}'><" in cases]


def test_the_description_names_every_part(job):
    for name, part in job["PARTS"].items():
        assert f"- {name}: {part.__doc__.split(',')[0].split('.')[0][2:20]}"[:8] in job["__doc__"]


@pytest.mark.slow
def test_the_rate_is_measured_against_a_matmul_in_turns(job):
    found = job["rate"](job["Setting"]("cpu", 1))
    assert found.wrong == ""
    first, *steps = found.rows
    assert first["share"] == 1
    assert {row["step"] for row in steps} == set(job["STEPS"])
    for row in steps:
        assert row["GFLOP/s"] > 0
        assert row["forward passes"] > 1
        # 2 FLOPs for each weight, copy and example, of which a site redraws its suffix
        assert 0 < row["GFLOP/s"] * row["ms"] * 1e6 < 2 * (784 * 512 + 512 * 512 + 5120) * 3 * (8 + 3) * 32


def found_on_cpu(tmp_path, part, gpus):
    """Runs a part as a person would; returns its rows."""
    job = runpy.run_path(str(SCRIPT), run_name="gpu_check")
    file = tmp_path / "found.json"
    assert job["main"]([part, "fractions", "--device", "cpu", "--gpus", str(gpus), "--json", str(file)]) == 0
    found, fractions = json.loads(file.read_text())["parts"]
    assert (fractions["result"], fractions["reason"]) == ("left out", "it needs CUDA")
    return found["rows"]


@pytest.mark.long
@pytest.mark.process
def test_a_run_has_one_digest_inline_and_on_actors(tmp_path, capfd):
    rows = found_on_cpu(tmp_path, "digest", 1)
    assert len(rows) == 3 * 3
    for network in {row["network"] for row in rows}:
        assert len({row["params_sha256"] for row in rows if row["network"] == network}) == 1
    assert len({row["params_sha256"] for row in rows}) == 3
    assert "threshold MLP: layers, 1 x 1 CPU" in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.process
def test_replicas_agree_with_one_process(tmp_path):
    inline, group = found_on_cpu(tmp_path, "replicas", 2)
    assert group["executor"] == "replicas, 2 x 1 CPU"
    assert group["backend"] == "gloo"
    assert 0 <= group["difference"] < 1e-4
    assert inline["test accuracy"] == pytest.approx(group["test accuracy"], abs=0.01)
