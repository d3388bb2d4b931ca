"""Jobs are thin entry points over the library."""

import json
import subprocess
import sys
from pathlib import Path

JOBS = Path(__file__).parents[1] / "jobs"
TINY = "model: {hidden: [8]}\nestimator: {copies: 8}\ntraining: {epochs: 1, batch_size: 512}\n"


def _replicate(*arguments):
    command = [sys.executable, str(JOBS / "replicate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_replicate_tabulates_every_seed_and_runs_nothing_twice(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = (tmp_path / "tiny.yaml", "--seeds", 0, 1, "--out", tmp_path / "out", "noise.scale=0.7")
    first = _replicate(*arguments)
    assert first.returncode == 0, first.stderr
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(row["name"], row["seed"]) for row in table] == [("tiny", 0), ("tiny", 1)]
    assert table[0]["params_sha256"] != table[1]["params_sha256"]
    metrics = tmp_path / "out" / "tiny-seed0" / "metrics.jsonl"
    before = metrics.read_text()
    again = _replicate(*arguments)
    assert again.returncode == 0, again.stderr
    assert metrics.read_text() == before
    assert [row["params_sha256"] for row in json.loads((tmp_path / "out" / "table.json").read_text())] == [
        row["params_sha256"] for row in table
    ]


def test_replicate_says_a_mistake_in_one_line(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = _replicate(tmp_path / "tiny.yaml", "noise.scale=-1", "--out", tmp_path / "out")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "noise.scale" in run.stderr
