"""Trains a network on analog hardware that drifts, in the loop: nobody knows the gains and offsets of its crossbars.

    python jobs/analog.py [--drift 0.05] [--epochs 10] [--seeds 3]

A crossbar multiplies by conductances that deviate from the weights written to it, adds offsets, and saturates; all of
that changes with every step. Three ways to train the same network on the digits data set:

- GLR: noise on the currents that are read, a loss for each example, and a redraw per crossbar. No model is needed.
- in the loop: the currents are measured, but backpropagation goes back through the ideal crossbar.
- ideal model: backpropagation in a simulation of the ideal crossbar, whose weights are then written to the hardware.

The table gives the accuracy of the hardware, as it is after each epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import glr_dist
from glr_dist.config import Data
from glr_dist.data import Dataset, load

METHODS = ("GLR", "in the loop", "ideal model")
BATCH = 128


class Read(torch.autograd.Function):
    """Currents y [N, O] of a crossbar for voltages x [N, I]; its derivative is that of the ideal crossbar."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return 4 * torch.tanh((x @ (weight * gain).T + bias + offset) / 4)

    @staticmethod
    def backward(ctx: Any, *delta: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return delta[0] @ weight, delta[0].T @ x, delta[0].sum(0), None, None


class Crossbar(nn.Module):
    """A layer of I inputs and O outputs. `ideal` computes what the writer of the weights expects."""

    gain: Tensor
    offset: Tensor

    def __init__(self, inputs: int, outputs: int, stream: torch.Generator) -> None:
        super().__init__()
        self.stream, self.ideal = stream, False
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=stream) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("gain", torch.exp(0.5 * torch.randn(outputs, inputs, generator=stream)))
        self.register_buffer("offset", 0.5 * torch.randn(outputs, generator=stream))

    def drift(self, rate: float) -> None:
        """Changes the gains by a random factor of about `rate`, and the offsets by as much."""
        self.gain *= torch.exp(rate * torch.randn(self.gain.shape, generator=self.stream))
        self.offset += rate * torch.randn(self.offset.shape, generator=self.stream)

    def forward(self, x: Tensor) -> Tensor:
        if self.ideal:
            return nn.functional.linear(x, self.weight, self.bias)
        return Read.apply(x, self.weight, self.bias, self.gain, self.offset)  # type: ignore[no-any-return]


def trained(
    method: str, data: Dataset, drift: float, epochs: int, seed: int, tell: Callable[[], object]
) -> list[float]:
    """Returns the hardware's test accuracy after each epoch; calls `tell` after each."""
    stream = torch.Generator().manual_seed(seed)
    bars = [Crossbar(64, 48, stream), Crossbar(48, 10, stream)]
    model = nn.Sequential(nn.Flatten(), bars[0], nn.Sigmoid(), bars[1])
    # The parameters act through the unknown gains, so that their derivative is the ideal crossbar's: verification
    # would refuse it.
    options: dict[str, Any] = {"sites": [Crossbar], "seed": seed, "verify": False}
    net = (
        glr_dist.GLR(model, 0.3, copies=96, **options)
        if method == "GLR"
        else glr_dist.GLR(model, None, "pathwise", **options)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = data.train.batch(slice(None))
    test_x, test_y = data.test.batch(slice(None))
    accuracies = []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=stream)
        for chosen in order[: len(x) // BATCH * BATCH].view(-1, BATCH):
            for bar in bars:
                bar.ideal = method == "ideal model"
            optimizer.zero_grad()
            net.estimate(x[chosen], y[chosen])
            optimizer.step()
            for bar in bars:
                bar.ideal = False
                bar.drift(drift)
        with torch.no_grad():
            accuracies.append((model(test_x).argmax(1) == test_y).float().mean().item())
        tell()
    return accuracies


def main(arguments: list[str] | None = None) -> dict[str, list[list[float]]]:
    """Trains with each method and seed, and prints the table; returns the accuracies [seed][epoch] by method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drift", type=float, default=0.05, help="relative change of the gains in a step (0.05)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs (10)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    options = parser.parse_args(arguments)
    data = load(Data(name="digits"))
    found: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    with tqdm(total=len(METHODS) * options.seeds * options.epochs, unit="epoch") as bar:
        for method in METHODS:
            for seed in range(options.seeds):
                found[method].append(trained(method, data, options.drift, options.epochs, seed, bar.update))
    print(f"test accuracy of the hardware, drift {options.drift:g}, mean of {options.seeds} seeds")
    print(f"{'epoch':<12}" + "".join(f"{epoch:>7}" for epoch in range(1, options.epochs + 1)))
    for method, runs in found.items():
        print(f"{method:<12}" + "".join(f"{sum(epoch) / len(epoch):>7.3f}" for epoch in zip(*runs, strict=True)))
    return found


if __name__ == "__main__":
    main()
