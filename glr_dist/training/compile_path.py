"""The path of a run: compiled or eager steps, chosen before the first step, and kept when the run is resumed."""

from __future__ import annotations

import sys

from glr_dist.config import Config
from glr_dist.data import Split
from glr_dist.execution.compile_choice import choose
from glr_dist.glr import GLR
from glr_dist.inductor import CompileError
from glr_dist.losses import Loss


def take_path(config: Config, net: GLR, train: Split, loss: Loss, *, may_run_eagerly: bool) -> str:
    """Compiles the step of a run if its configuration asks for it; returns the path that it takes.

    Args:
        config: the configuration, whose `execution.compile` may be `auto`.
        net: the network, in training mode.
        train: the training examples.
        loss: the loss.
        may_run_eagerly: a step that cannot be compiled runs eagerly.

    Raises:
        CompileError: it cannot be compiled, and may not run eagerly.
    """
    training, path = config.training, config.execution.compile
    size, steps = training.batch_size, training.epochs * -(-len(train) // training.batch_size)
    batches = sorted({min(size, len(train)), len(train) % size} - {0}, reverse=True)
    if path == "auto":
        step = net.bind(*train.batch(slice(0, size)), loss)
        path = choose(net.estimator, step, min(steps, training.max_steps or steps), len(batches))
    net.compiles = path == "step"
    if net.compiles and not sys.stderr.isatty():  # a terminal shows a bar
        print("execution.compile: step; compiling the step", file=sys.stderr)
    try:
        for batch in batches if net.compiles else ():
            net.compile_step(*train.batch(slice(0, batch)), loss)
        if net.compiles and net.eager_passes:
            print(f"execution.compile: step; {net.eager_passes}; shared passes run eagerly", file=sys.stderr)
    except CompileError as error:
        if not may_run_eagerly:
            raise
        print(f"execution.compile: none; {error}", file=sys.stderr)
        net.compiles, path = False, "none"
    return path


def with_path(config: Config, path: str) -> Config:
    """Returns the configuration with another `execution.compile`."""
    execution = config.execution.model_copy(update={"compile": path})
    return config.model_copy(update={"execution": execution})


def with_path_of(before: Config, now: Config) -> Config:
    """Returns the configuration that resumes a run, with the path of the run so far.

    Args:
        before: the configuration of the run so far.
        now: the configuration that resumes it.
    """
    path, wanted = before.execution.compile, now.execution.compile
    if path != wanted and "auto" not in (path, wanted):
        print(f"execution.compile: {path}, as the run began; {wanted} needs a new run", file=sys.stderr)
    return with_path(now, path)
