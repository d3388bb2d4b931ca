"""The memory of a step is bounded by the size of a work item, not by the number of copies or passes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or not Path("/proc/self/clear_refs").exists(),
        reason="reads the peak of resident memory from Linux's /proc",
    ),
    pytest.mark.long,
]

# A process of its own for each measurement: an allocator does not give back what an earlier step has used. The base
# is read after a step of two examples, which loads what is loaded lazily but needs no memory to speak of. What counts
# is memory in use: glibc's allocator is told to give back what is freed instead of keeping it for later (its holes
# grow over the first passes, up to some bound).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
STEP = """
import sys
import torch
from glr_dist import GLR
from glr_dist.execution.inline import Inline
from glr_dist.nn import mlp

def status(field):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024

copies, passes, estimator = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
stream = torch.Generator().manual_seed(0)
model = mlp(784, [512, 512], 10, "threshold", init="torch", generator=stream)
x, y = torch.rand(256, 784, generator=stream), torch.randint(0, 10, (256,), generator=stream)

def net(**options):
    return GLR(model, estimator=estimator, executor=Inline(2), **options)

net(copies=2).gradients(x[:2], y[:2])
step = net(copies=copies, passes=passes)
step.prepare(x)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from what is resident now
before = status("VmRSS")
gradients = step.gradients(x, y)
print(status("VmHWM") - before)
"""
OUTPUT = 784 * 512 * 4  # bytes of the largest gradient: what a step holds at the very least


def peak(python, copies: int, passes: int = 1, estimator: str = "conditional") -> int:
    """Bytes that a step needs at its peak."""
    done = python(STEP, copies, passes, estimator, **ALLOCATOR)
    assert done.returncode == 0, done.stderr
    found = int(done.stdout)
    assert found > OUTPUT, "the measurement does not see the step"
    return found


@pytest.fixture(scope="module")
def base(python) -> int:
    return peak(python, 100)


def test_eight_times_the_copies_need_no_more_memory(python, base):
    assert peak(python, 800) <= 1.3 * base


def test_eight_times_the_passes_need_no_more_memory(python, base):
    assert peak(python, 100, passes=8) <= 1.3 * base


def test_joint_needs_no_more_memory_for_more_copies(python):
    assert peak(python, 200, estimator="joint") <= 1.3 * peak(python, 50, estimator="joint")
