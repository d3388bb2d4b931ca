"""Models of one step of backpropagation on many GPUs, to compare the likelihood-ratio estimators with.

data      3 forward passes of ⌈N/P⌉ examples, beside the last two a ring all-reduce: 2(P-1)/P · bytes, 2(P-1)
latencies
pipeline  S ≤ P stages of equal work, m micro-batches: (m+S-1)/m times a stage's work, bubble (S-1)/(m+S-1)
"""

from __future__ import annotations

import math

from glr_dist.estimators import Step
from glr_dist.execution import plan
from glr_dist.execution.predict import Hardware, Prediction, parameters


def data_parallel(step: Step, machine: Hardware, gpus: int) -> Prediction:
    """Predicts a step of backpropagation with the batch split over GPUs and a ring all-reduce of the gradients.

    The all-reduce is assumed to start together with the backward pass, the earliest possible time.
    """
    examples = step.size
    used = min(gpus, examples)
    gradients = parameters(step) * step.network.dtype.itemsize
    work = 3 * plan.pass_work(step, noisy=False) / machine.rate
    compute = math.ceil(examples / used) * work + 3 * machine.block
    rounds = 2 * (used - 1)
    total = max(compute, compute / 3 + rounds * (gradients / used / machine.bandwidth + machine.latency))
    return Prediction(
        gpus, used, total, _waiting(examples * work + 3 * used * machine.block, gpus, total), rounds * gradients, rounds
    )


def pipeline(step: Step, machine: Hardware, gpus: int) -> Prediction:
    """Predicts a step of backpropagation with the layers split into stages that pipeline micro-batches.

    The number of micro-batches is the fastest one. Stages have equal work and are cut where the fewest activations
    pass. Transfers overlap with computation except while the pipeline fills and drains.
    """
    stages = max(1, min(gpus, len(step.network.sites)))
    counts = {min(step.size, 2**power) for power in range(step.size.bit_length() + 1)} if stages > 1 else {1}
    tried = [_pipeline(step, machine, gpus, stages, micro) for micro in sorted(counts)]
    return min(tried, key=lambda prediction: prediction.seconds)


def _pipeline(step: Step, machine: Hardware, gpus: int, stages: int, micro: int) -> Prediction:
    examples, size = step.size, step.network.dtype.itemsize
    rows = math.ceil(examples / micro)
    work = 3 * plan.pass_work(step, noisy=False) / machine.rate
    stage = (rows * work + 3 * machine.block) / stages
    boundaries = sorted(site.units for site in step.network.sites[:-1])[: stages - 1]
    messages = sum(machine.latency + rows * units * size / machine.bandwidth for units in boundaries)
    total = (micro + stages - 1) * stage + 2 * messages
    waiting = _waiting(micro * stages * stage, gpus, total)
    return Prediction(gpus, stages, total, waiting, 2.0 * examples * sum(boundaries) * size, 2 * (stages - 1))


def _waiting(computed: float, gpus: int, total: float) -> float:
    return max(0.0, 1 - computed / (gpus * total))
