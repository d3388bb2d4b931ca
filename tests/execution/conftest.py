"""One local Ray for all tests of this folder that need one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this process's own with four logical CPUs, whatever the machine has; its workers find these tests."""
    ray = pytest.importorskip("ray")
    from glr_dist.execution.cluster import connect

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        assert connect(4)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not connect(4)
    yield
    ray.shutdown()
