"""`glr-dist plan`: the work items of a step, their cost on this machine, and a simulation of many GPUs.

The items are measured on this machine, and the step on Ray actors is predicted from them. The GPUs are simulated, by
the models of `execution.predict` for GLR and of `planning.backprop` for backpropagation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glr_dist import data
from glr_dist.build import device_of, network_of
from glr_dist.config import Config
from glr_dist.execution import plan, predict
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.execution.predict import Hardware
from glr_dist.figures import draw
from glr_dist.files import write_atomically
from glr_dist.planning import backprop
from glr_dist.planning.bench import Bench
from glr_dist.planning.step_plan import METHODS, StepPlan, plan_figure
from glr_dist.training.warm_start import begin_with, weights_of

GPU = Hardware(rate=50e12, block=2e-4, bandwidth=25e9, latency=2e-5)
_LONG = 10.0  # a whole step is measured only if it is predicted to take less, in seconds


def plan_step(config: Config, out: Path, numbers: Sequence[int], gpu: Hardware = GPU) -> StepPlan:
    """Measures a step's work items, predicts the step, and writes `plan.json`, `plan.png` and `plan.pdf` to a folder.

    Args:
        config: the configuration.
        out: the folder.
        numbers: numbers of actors and of GPUs to predict for, each at least 1.
        gpu: the assumed GPU.

    Raises:
        ConfigError: the configuration is invalid for its network or data, or its weights do not fit.
        CheckpointError: the weights are missing or damaged.
        OSError: the folder cannot be written.
    """
    keep_freed_memory()
    numbers = sorted(set(numbers))
    device = device_of(config.execution)
    dataset = data.load(config.data, config.code)
    net = network_of(config, dataset, device).train()
    weights = weights_of(config.model, device)
    if weights is not None:
        begin_with(net, weights)
    x, y = dataset.train.to(device).batch(slice(0, config.training.batch_size))
    bench = Bench(config, net, x, y)
    out.mkdir(parents=True, exist_ok=True)
    step, estimator, hardware = bench.step, net.estimator, Hardware()
    passes = estimator.passes(step)
    kinds, driver, tape_bytes = bench.kinds(), bench.driver(), bench.tape_bytes
    here = predict.load_of(estimator, step, tape_bytes, lambda item: bench.costs.seconds(step, item), driver.seconds)
    flops, calls = predict.serial_work(estimator, step)
    serial = flops / gpu.rate + calls * gpu.block
    there = predict.load_of(estimator, step, tape_bytes, lambda item: gpu.item_seconds(step, item), serial)
    simulated = (
        [predict.layers(there, gpu, number) for number in numbers],
        [backprop.data_parallel(step, gpu, number) for number in numbers],
        [backprop.pipeline(step, gpu, number) for number in numbers],
    )
    step_plan = StepPlan(
        title=(
            f"{config.estimator.name}, batch of {len(y)}, {passes} shared pass{'es' * (passes > 1)}, "
            f"{len(net.network.sites)} sites, {predict.parameters(step):,} parameters"
        ),
        kinds=tuple(kinds),
        driver=driver,
        load=here,
        state_bytes=plan.state_bytes(step),
        tape_bytes=passes * tape_bytes,
        inline=bench.whole() if here.inline() < _LONG else None,
        hardware=hardware,
        actors=tuple(predict.layers(here, hardware, number) for number in numbers),
        gpu=gpu,
        simulation={method: tuple(found) for method, found in zip(METHODS, simulated, strict=True)},
    )
    content = {"config": config.model_dump(mode="json"), **_finite(asdict(step_plan))}
    write_atomically(out / "plan.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    draw(out / "plan.png", lambda: plan_figure(step_plan))
    return step_plan


def _finite(value: Any) -> Any:
    """Replaces infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
