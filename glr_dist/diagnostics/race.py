"""Seconds and forward passes that a network needs to reach an accuracy, by several estimators and by backpropagation.

All candidates begin with the same weights, see the same batches and train in turns on one machine; evaluation does not
count, nor does compiling redraws. Backpropagation is torch's own, on the network without noise.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from glr_dist import data
from glr_dist.build import device_of, loss_of, network_of, optimizer_of
from glr_dist.config import Config, Estimator
from glr_dist.errors import ConfigError
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.losses import has_derivative
from glr_dist.streams import Key, Role, generator
from glr_dist.training.average import Average
from glr_dist.training.scores import scores

BACKPROP = "backpropagation"
_BACKPROP_PASSES = 3  # a backward pass counts as two forward ones


@dataclass(frozen=True)
class Time:
    """Cost of one candidate in one round; None if it did not reach the accuracy within the steps."""

    seconds: float | None
    forward_passes: float | None
    steps: int | None


class _Candidate:
    """A network in training."""

    def __init__(self, config: Config, dataset: data.Dataset, *, backprop: bool) -> None:
        self.config, self.backprop = config, backprop
        self.net = network_of(config, dataset, device_of(config.execution)).train()
        self.optimizer, self.loss = optimizer_of(config.training, self.net), loss_of(config)
        ema = config.training.ema
        self.average = None if ema is None else Average(self.net, ema)
        # With `copies: auto` another K would have to be compiled after each measurement.
        compiled = config.execution.compile == "step" and config.estimator.copies != "auto"
        self.net.compiles = compiled and not backprop
        self.steps = 0
        self.seconds = self.forward_passes = 0.0
        self.time: Time | None = None

    def train(self, batches: Sequence[tuple[Any, Any]]) -> None:
        """Makes one step on each batch."""
        if self.net.compiles and not self.steps:
            self.net.compile_step(*batches[0], self.loss)
        # Counted outside the clock: all batches have one size, and only an allotment changes the cost of a step.
        passes = _BACKPROP_PASSES if self.backprop else self.net.cost(*batches[0], self.loss)[1]
        started = time.perf_counter()
        for x, y in batches:
            self.optimizer.zero_grad()
            if self.backprop:
                self.loss(self.net.model(x), y).mean().backward()  # type: ignore[no-untyped-call]
                self.forward_passes += passes
            else:
                before = self.net.allotment
                self.net.estimate(x, y, self.loss)
                after = self.net.allotment
                self.forward_passes += passes if after is None else after.forward_passes
                self.forward_passes += after.measuring if after is not None and after is not before else 0.0
            self.optimizer.step()
            self.steps += 1
            if self.average is not None:
                self.average.update(self.steps)
        self.seconds += time.perf_counter() - started

    def accuracy(self, validation: data.Split) -> float:
        """Returns the accuracy of the weights, or of their average where the configuration has one."""
        with nullcontext() if self.average is None else self.average.in_place():
            found = scores(self.net, validation, self.loss)["accuracy"]
        self.net.train()  # `scores` leaves it in evaluation mode, in which dropout does not act
        return found


def race(
    candidates: Mapping[str, Config], accuracy: float, rounds: int, steps: int, turn: int
) -> dict[str, list[Time]]:
    """Trains the candidates in turns until each has reached an accuracy on the validation examples.

    Args:
        candidates: configurations by name; that of `BACKPROP` is trained by backpropagation.
        accuracy: the accuracy.
        rounds: repetitions, each with its own seed: that of the configuration, the next one, ….
        steps: maximum number of steps.
        turn: steps between two evaluations.

    Returns:
        The times of each round, by candidate.
    """
    keep_freed_memory()
    found: dict[str, list[Time]] = {name: [] for name in candidates}
    first = next(iter(candidates.values()))
    dataset = data.load(first.data, first.code)
    train = dataset.train.to(device_of(first.execution))
    validation = dataset.validation.to(device_of(first.execution))
    with tqdm(total=rounds * len(candidates) * steps, disable=not sys.stderr.isatty(), unit="step") as bar:
        for number in range(rounds):
            racing = {
                name: _Candidate(
                    config.model_copy(update={"seed": config.seed + number}), dataset, backprop=name == BACKPROP
                )
                for name, config in candidates.items()
            }
            for start in range(0, steps, turn):
                indices = _batches(first, len(train), start, min(turn, steps - start), number)
                batches = [train.batch(index) for index in indices]
                for name, candidate in racing.items():
                    bar.update(len(batches))
                    if candidate.time is not None:
                        continue
                    candidate.train(batches)
                    if candidate.accuracy(validation) >= accuracy:
                        done = start + len(batches)
                        candidate.time = Time(candidate.seconds, candidate.forward_passes, done)
                    bar.set_postfix_str(f"round {number + 1}/{rounds}, {name}", refresh=False)
                if all(candidate.time is not None for candidate in racing.values()):
                    bar.update(len(racing) * (steps - start - len(batches)))
                    break
            for name, candidate in racing.items():
                found[name].append(candidate.time or Time(None, None, None))
    return found


def _batches(config: Config, examples: int, start: int, number: int, round_: int) -> list[torch.Tensor]:
    """Returns the examples of the given steps: a keyed order for each epoch, the same for all candidates."""
    size = min(config.training.batch_size, examples)
    per_epoch = examples // size
    indices = []
    for step in range(start, start + number):
        stream = generator(Key(config.seed + round_, step=step // per_epoch, role=Role.SHUFFLE))
        place = step % per_epoch
        indices.append(torch.randperm(examples, generator=stream)[place * size : (place + 1) * size])
    return indices


def by_backprop(config: Config) -> Config:
    """Returns the configuration that backpropagation trains: sigmoid units for thresholds, cross-entropy for 0-1 loss.

    Raises:
        ConfigError: its loss or its network cannot be differentiated.
    """
    changes: dict[str, Any] = {"estimator": Estimator(name="pathwise")}  # what suits other units may be refused here
    if getattr(config.model, "activation", "sigmoid") in ("threshold", "sign"):
        changes["model"] = config.model.model_copy(update={"activation": "sigmoid"})
    if not has_derivative(loss_of(config)):
        if config.training.loss != "zero_one":
            raise ConfigError(
                f"training.loss: {config.training.loss!r} is not marked as differentiable; backpropagation needs that"
            )
        changes["training"] = config.training.model_copy(update={"loss": "cross_entropy"})
    return config.model_copy(update=changes)


def race_table(found: Mapping[str, Sequence[Time]]) -> str:
    """Returns a table: medians and ranges over the rounds, and ratios of seconds to backpropagation."""
    width = max(len("candidate"), *map(len, found))
    lines = [f"{'candidate':<{width}}{'reached':>9}{'steps':>8}{'passes':>10}{'seconds':>24}{'ratio to backprop':>24}"]
    for name, times in found.items():
        reached = [t for t in times if t.seconds is not None]
        line = f"{name:<{width}}{f'{len(reached)}/{len(times)}':>9}"
        if reached:
            pairs = [
                t.seconds / other.seconds
                for t, other in zip(times, found[BACKPROP], strict=True)
                if t.seconds is not None and other.seconds
            ]
            line += f"{statistics.median(t.steps or 0 for t in reached):>8.0f}"
            line += f"{statistics.median(t.forward_passes or 0 for t in reached):>10.0f}"
            line += f"{_spread([t.seconds or 0.0 for t in reached]):>24}{_spread(pairs) if pairs else '-':>24}"
        lines.append(line)
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """Formats a median and a range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"
