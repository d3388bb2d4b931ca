"""`execution.compile: auto`: compiled steps if those to come are predicted to pay for the compilation.

The choice follows from the configuration and the number of steps alone: it is the same on every machine and executor.
"""

from __future__ import annotations

import sys
from typing import Literal

from glr_dist.config import can_compile
from glr_dist.estimators import Estimator, Step
from glr_dist.estimators.compiled_step import compilable, compiles_passes, shapes_of
from glr_dist.execution.predict import all_items

# Processor seconds, as measured on one core; what counts is their ratio.
SECONDS_PER_ELEMENT = 2e-9  # saved per element of noise, and of noisy logits and what follows them
SECONDS_PER_PASS = 2e-4  # saved per shared pass or block of redraws: calls of operators
SECONDS_PER_FUNCTION = 4.0  # of compiling one function
SECONDS_OF_START = 20.0  # of loading the compiler
_MARGIN = 2.0  # by which the saving must exceed the cost


def choose(estimator: Estimator, step: Step, steps: int, batches: int) -> Literal["none", "step"]:
    """Decides between eager and compiled steps, and prints the reason to stderr.

    Args:
        estimator: the estimator of the run.
        step: one step.
        steps: number of steps of the run.
        batches: number of different sizes of its batches.
    """
    if not can_compile(step.options):
        return "none"
    items = [item for item in all_items(estimator, step) if compilable(step, step.network.by_name[item.site or ""])]
    work = [estimator.work(step, item) for item in items]
    saved = steps * sum(
        SECONDS_PER_ELEMENT * (each.noise + each.activations) + SECONDS_PER_PASS * each.passes for each in work
    )
    functions = len(shapes_of(step, items)) * batches
    if compiles_passes(step, items):
        saved += steps * SECONDS_PER_PASS * estimator.passes(step) * len(step.example_blocks)
        functions += batches * len({step.examples_in(block) for block in step.example_blocks})
    cost = SECONDS_OF_START + SECONDS_PER_FUNCTION * functions if functions else 0.0
    path: Literal["none", "step"] = "step" if saved > _MARGIN * cost else "none"
    print(
        f"execution.compile: {path}; predicted to save {saved:,.0f} s of processor time in {steps:,} steps, for "
        f"{cost:,.0f} s of compiling {functions} functions",
        file=sys.stderr,
    )
    return path
