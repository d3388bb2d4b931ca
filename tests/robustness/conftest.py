"""Trained runs on digits that the robustness tests share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from glr_dist import config
from glr_dist.training.train import train

# Digits, a second or two each; on the CPU, so that the results are the same on any machine.
RUNS = {
    "threshold": """
model: {hidden: [32], activation: threshold}
noise: {scale: 0.5}
estimator: {copies: 32}
training: {epochs: 12, batch_size: 64, optimizer: {name: Adam, lr: 0.02}}
execution: {device: cpu}
""",
    "bp": """
model: {hidden: [32], activation: sigmoid}
noise: {law: none}
estimator: {name: pathwise}
training: {epochs: 12, batch_size: 64, optimizer: {name: Adam, lr: 0.02}}
execution: {device: cpu}
""",
}


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        if not (root / name).exists():
            path = root / f"{name}.yaml"
            path.write_text(RUNS[name])
            with redirect_stdout(StringIO()):  # keeps the output of the test itself clean
                train(config.load_config(path), root / name)
        return root / name

    return run


@pytest.fixture
def run(_trained: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """`run("threshold")`, `run("bp")`: returns a fresh copy of a trained run's folder."""

    def copied(name: str) -> Path:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(_trained(name), folder)
        return folder

    return copied


@pytest.fixture
def claimed_elsewhere() -> Iterator[Callable[[Path, str], None]]:
    """`claimed_elsewhere(folder, purpose)`: lets another process claim a folder until the end of the test."""
    code = (
        "import sys; from glr_dist.claims import claim; "
        "held = claim(*sys.argv[1:]); print(flush=True); sys.stdin.read()"
    )
    processes = []

    def hold(folder: Path, purpose: str) -> None:
        command = [sys.executable, "-c", code, str(folder), purpose]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert processes[-1].stdout.readline() == b"\n"

    yield hold
    for process in processes:
        process.communicate(timeout=60)
