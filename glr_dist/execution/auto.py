"""`auto`: `layers` if it is predicted to be faster than `inline`, from the measured items of one step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Literal

import torch

from glr_dist.config import Execution
from glr_dist.estimators import Estimator, Partial, Step
from glr_dist.execution import cluster, plan, predict
from glr_dist.execution.executor import TapedItem
from glr_dist.execution.inline import Inline
from glr_dist.execution.predict import Hardware, Load
from glr_dist.execution.reproducible import reproducible


def choose(execution: Execution, estimator: Estimator, step: Step, threads: int) -> Literal["inline", "layers"]:
    """Decides between `inline` and `layers`, and prints the reason to stderr.

    Args:
        execution: the configuration.
        estimator: the estimator of the run.
        step: one step, which is computed once to measure its items.
        threads: number of threads of `inline`.
    """
    if step.device.type == "cuda" and not execution.gpus_per_actor:
        return "inline"
    actors = cluster.available(execution.cpus_per_actor, execution.gpus_per_actor)
    actors = min(execution.actors or actors, actors)  # more of them would share cores
    if not actors:
        print("execution auto: inline; the cluster has no room for an actor", file=sys.stderr)
        return "inline"
    load, hardware = measured_load(estimator, step), Hardware()
    pays = predict.layers_pay(load, hardware, threads, actors)
    kind: Literal["inline", "layers"] = "layers" if pays else "inline"
    print(
        f"execution auto: {kind}; predicted time of a step: {1000 * load.inline(threads):.3g} ms inline on {threads} "
        f"threads, {1000 * predict.layers(load, hardware, actors).seconds:.3g} ms on {actors} actors",
        file=sys.stderr,
    )
    return kind


class _Measuring(Inline):
    """Computes on one thread and records the seconds of the items and the bytes of the tapes that `layers` sends."""

    def __init__(self) -> None:
        super().__init__(1)
        self.costs = plan.Costs()
        self.item_seconds, self.tape_bytes = 0.0, 0

    def partials(
        self, estimator: Estimator, step: Step, passes: Iterable[list[TapedItem]]
    ) -> Iterator[tuple[TapedItem, Partial]]:
        """Computes and times each item."""
        for items in passes:
            tapes = {taped.item.example_block: taped.tape for taped in items}
            self.tape_bytes += sum(plan.tape_bytes(step, tape) for tape in tapes.values())
            for taped in items:
                started = time.perf_counter()
                partial = estimator.partial(step, taped.item, taped.tape)
                seconds = time.perf_counter() - started
                self.costs.observe(step, taped.item, seconds)
                self.item_seconds += seconds
                yield taped, partial


def measured_load(estimator: Estimator, step: Step) -> Load:
    """Measures the load of one step by running it once on a single thread."""
    measuring = _Measuring()
    with reproducible(), torch.no_grad(), step.network.hooked():
        started = time.perf_counter()
        measuring.gradients(estimator, step)
        driver = time.perf_counter() - started - measuring.item_seconds
    tapes = measuring.tape_bytes // estimator.passes(step)
    return predict.load_of(estimator, step, tapes, lambda item: measuring.costs.seconds(step, item), driver)
