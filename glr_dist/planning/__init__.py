"""`glr-dist plan`: the work items of a step, what it costs on this machine, and a simulation of many GPUs.

Items are measured on this machine, and that gives the step on Ray actors. The GPUs are simulated: `execution.predict`
says by which model, for GLR and for data- and pipeline-parallel backpropagation.
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
from glr_dist.execution.predict import Machine
from glr_dist.files import write_atomically
from glr_dist.planning.bench import Bench
from glr_dist.planning.report import METHODS, Report, draw

GPU = Machine(rate=50e12, block=2e-4, bandwidth=25e9, latency=2e-5)
_LONG = 10.0  # predicted seconds from which on a whole step is not measured beside its parts


def plan_step(settings: Config, out: Path, numbers: Sequence[int], gpu: Machine = GPU) -> Report:
    """Measures a step's work items, predicts the step, and writes `plan.json` and `plan.png` to a folder.

    Args:
        settings: the configuration.
        out: the folder.
        numbers: of actors and of GPUs, each at least 1.
        gpu: what is assumed of the GPUs.

    Raises:
        ConfigError: a user's mistake.
        OSError: the folder cannot be written.
    """
    keep_freed_memory()
    numbers = sorted(set(numbers))
    device = device_of(settings.execution)
    dataset = data.load(settings.data)
    net = network_of(settings, dataset, device).train()
    x, y = dataset.train.to(device).batch(slice(0, settings.training.batch_size))
    bench = Bench(settings, net, x, y)
    out.mkdir(parents=True, exist_ok=True)
    step, estimator, machine = bench.step, net.estimator, Machine()
    passes = estimator.passes(step)
    kinds, driver, tape_bytes = bench.kinds(), bench.driver(), bench.tape_bytes
    here = predict.load_of(estimator, step, tape_bytes, lambda item: bench.costs.seconds(step, item), driver.seconds)
    flops, calls = predict.serial_work(estimator, step)
    serial = flops / gpu.rate + calls * gpu.block
    there = predict.load_of(estimator, step, tape_bytes, lambda item: gpu.item_seconds(step, item), serial)
    simulated = (
        [predict.layers(there, gpu, number) for number in numbers],
        [predict.data_parallel(step, gpu, number) for number in numbers],
        [predict.pipeline(step, gpu, number) for number in numbers],
    )
    report = Report(
        title=(
            f"{settings.estimator.name}, batch of {len(y)}, {passes} shared pass{'es' * (passes > 1)}, "
            f"{len(net.network.sites)} sites, {predict.parameters(step):,} parameters"
        ),
        kinds=tuple(kinds),
        driver=driver,
        load=here,
        state_bytes=plan.state_bytes(step),
        tape_bytes=passes * tape_bytes,
        inline=bench.whole() if here.inline() < _LONG else None,
        machine=machine,
        actors=tuple(predict.layers(here, machine, number) for number in numbers),
        gpu=gpu,
        simulation={method: tuple(found) for method, found in zip(METHODS, simulated, strict=True)},
    )
    content = {"config": settings.model_dump(mode="json"), **_finite(asdict(report))}
    write_atomically(out / "plan.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    draw(report, out / "plan.png")
    return report


def _finite(value: Any) -> Any:
    """The same with null for infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
