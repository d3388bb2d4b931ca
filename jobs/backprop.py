"""Trains a configuration's network by backpropagation, for comparison; jumps get a surrogate gradient.

    python jobs/backprop.py configs/zoo/mnist_spiking_mlp.yaml [key=value ...]

The initial weights, augmentation, batch size, epochs, optimizer, schedule and average of the weights are those of the
configuration; the noise is not used. A jump is a step in the forward pass. In the backward pass the derivative of a
threshold unit is that of a steep sigmoid, and quantised activations are the clipped identity (straight-through). Prints
the accuracy of each epoch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glr_dist.build import network_of, optimizer_of, schedule_of
from glr_dist.config import load_config
from glr_dist.data import load
from glr_dist.data.augment import augmented
from glr_dist.errors import ConfigError, UserError
from glr_dist.nn import LIF, Heaviside, Quantise, Sign, Staircase
from glr_dist.training.average import Average
from glr_dist.training.scores import scores

STEEPNESS = 4.0  # of the sigmoid, in units of the logits


class Surrogate(nn.Module):
    """A module with jumps whose derivative is that of another function."""

    def __init__(self, module: nn.Module, smooth: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.smooth = module, smooth

    def forward(self, x: Tensor) -> Tensor:
        smooth = self.smooth(x)
        values: Tensor = self.module(x) + smooth - smooth.detach()
        return values


class SurrogateLIF(nn.Module):
    """`LIF` whose spikes [N, T, *S] have the derivative of a steep sigmoid of the potential."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak = leak
        self.spike = Surrogate(Heaviside(), _steep)

    def forward(self, x: Tensor) -> Tensor:
        spikes: list[Tensor] = []
        potential = torch.zeros_like(x[:, 0])
        for z in x.unbind(1):
            potential = self.leak * potential + z
            spikes.append(self.spike(potential - 1))
            potential = potential - spikes[-1]
        return torch.stack(spikes, 1)


def _steep(x: Tensor) -> Tensor:
    return torch.sigmoid(STEEPNESS * x)


def _clipped(x: Tensor) -> Tensor:
    return x.clamp(0, 1)


def with_surrogates(model: nn.Module) -> None:
    """Replaces the modules that have jumps, in place."""
    for name, module in model.named_children():
        if isinstance(module, LIF):
            setattr(model, name, SurrogateLIF(module.leak))
        elif isinstance(module, Heaviside):
            setattr(model, name, Surrogate(module, _steep))
        elif isinstance(module, Sign):
            setattr(model, name, Surrogate(module, F.hardtanh))
        elif isinstance(module, Quantise | Staircase):
            setattr(model, name, Surrogate(module, _clipped))
        else:
            with_surrogates(module)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code, 2 after an error that one line explains."""
    parser = argparse.ArgumentParser(description="Train a configuration's network by backpropagation.")
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if config.training.loss != "cross_entropy":
            raise ConfigError(f"training.loss: {config.training.loss!r} has no derivative; use 'cross_entropy'")
        training = config.training
        unused = {f"training.{name}": getattr(training, name) for name in ("penalty", "adversarial", "clip_norm")}
        for name, value in {**unused, "training.warmup": training.warmup, "noise.input": config.noise.input}.items():
            if value:
                raise ConfigError(f"{name}: has no effect in this job; train with estimator.name=pathwise instead")
        dataset = load(config.data, config.code)
        net = network_of(config, dataset, torch.device("cpu"))
        with_surrogates(net.model)
        steps = len(dataset.train) // training.batch_size
        optimizer = optimizer_of(training, net)
        average = None if training.ema is None else Average(net, training.ema)
        schedule = schedule_of(training, optimizer, steps)
    except UserError as error:
        print(f"backprop: {error}", file=sys.stderr)
        return 2
    per_step = training.schedule is not None and training.schedule.per == "step"
    stream, started = torch.Generator().manual_seed(config.seed), time.perf_counter()
    step = 0
    for epoch in range(training.epochs):
        net.train()
        order = torch.randperm(len(dataset.train), generator=stream)[: steps * training.batch_size]
        total = 0.0
        for index in order.view(steps, -1):
            x, y = dataset.train.batch(index)
            if config.data.augment is not None:
                x = augmented(x, config.data.augment, config.seed, step)
            optimizer.zero_grad()
            loss = F.cross_entropy(net.model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if average is not None:
                average.update(step)
            total += loss.item() / steps
            if schedule is not None and per_step:
                schedule.step()
        if schedule is not None and not per_step:
            schedule.step(total) if isinstance(schedule, _PLATEAU) else schedule.step()
        with nullcontext() if average is None else average.in_place():
            accuracies = [scores(net, split, _losses)["accuracy"] for split in (dataset.validation, dataset.test)]
        print(
            f"epoch {epoch + 1}/{training.epochs}  train loss {total:.4f}  validation accuracy {accuracies[0]:.4f}  "
            f"test accuracy {accuracies[1]:.4f}  {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return 0


_PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


if __name__ == "__main__":
    sys.exit(main())
