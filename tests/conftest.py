"""Fixtures that all tests share: real data, tiny configurations, and the command line as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glr_dist import config
from glr_dist.config import Config

# Digits, three steps an epoch: a run takes a fraction of a second. On the CPU, so that it is the same on any machine.
TINY = """
model: {hidden: [8], activation: threshold}
noise: {scale: 0.5}
estimator: {copies: 8}
training: {epochs: 3, batch_size: 512, optimizer: {name: Adam, lr: 0.02}}
execution: {device: cpu}
"""

FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@pytest.fixture(scope="session")
def glr_data() -> Path:
    """The folder of the real data sets, named by GLR_DATA."""
    if not (named := os.environ.get("GLR_DATA")):
        pytest.skip("needs MNIST and Fashion-MNIST: GLR_DATA is not set")
    root = Path(named)
    for folder in FOLDERS.values():
        if not (root / folder / "raw" / "train-images-idx3-ubyte").exists():
            pytest.skip(f"needs {folder}/raw/train-images-idx3-ubyte in GLR_DATA")
    return root


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    """A configuration file of a tiny run."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """`tiny("noise.scale=2", …)`: the configuration of a tiny run with overrides."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return lambda *overrides: config.load_config(path, overrides)


# What the installed script `glr-dist` does; `test_cli` holds that the two are the same.
COMMAND = (sys.executable, "-c", "import sys; from glr_dist.cli import main; sys.exit(main())")


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """`start("train", …, **options of Popen)`: the command line in another process, its output in pipes."""

    def popen(*arguments: object, **options: object) -> subprocess.Popen[str]:
        piped = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            # A shell starts background jobs with SIGINT ignored, which children inherit: a person's Ctrl-C is not.
            "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        }
        return subprocess.Popen([*COMMAND, *map(str, arguments)], **{**piped, **options})

    return popen


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python(code, *arguments, **environment)`: a fresh interpreter, run to its end."""

    def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)

    return run


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this process's own with four logical CPUs, whatever the machine has; its workers find these tests."""
    ray = pytest.importorskip("ray")
    from glr_dist.execution.cluster import connect

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "execution"), prepend=os.pathsep)
        assert connect(4)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not connect(4)
    yield
    ray.shutdown()
