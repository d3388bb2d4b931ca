"""Compares GLR with other methods that train without backpropagation, on one network and the same batches.

    python jobs/gradient_free.py configs/mnist/lrs.yaml [key=value ...] [--seconds 60] [--pairs 50] [--out DIR]

- GLR: the estimator of the configuration, which redraws noise on the logits of each layer.
- PGPE: EvoTorch's, with its centred ranks (extra `bench`; left out without it).
- SPSA: the slope of the loss between both ends of random directions of all weights (Spall 1992).
- forward gradient: the derivative along random directions of all weights (Baydin et al. 2022); left out where the loss
  has none.

Each step of the last three evaluates `--pairs` antithetic pairs of weight vectors, or as many directions. A forward
pass is one evaluation of the batch by the whole network; a derivative along a direction counts as two. All methods
use Adam without a schedule. Each trains once with every learning rate of `--rates`, for the same processor time of one
thread; the best rate by validation accuracy is reported.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from tqdm import tqdm

from glr_dist import data
from glr_dist.build import loss_of, network_of
from glr_dist.config import Config, load_config
from glr_dist.errors import ConfigError, UserError
from glr_dist.figures import draw, figure_of
from glr_dist.files import write_atomically
from glr_dist.losses import Loss, has_derivative
from glr_dist.streams import Key, Role, generator

RATES = (0.03, 0.01, 0.003, 0.001)
EVALUATIONS = 20  # of a training
DISTANCE = 0.02  # between the weights and the end of a direction of SPSA; PGPE's first standard deviation


@dataclass
class Training:
    """The course of a training by one method with one learning rate.

    Attributes:
        rate: the learning rate.
        steps: number of steps.
        points: processor seconds, forward passes, and validation accuracy, at each evaluation.
        test: test accuracy at the end.
    """

    rate: float
    steps: int = 0
    points: list[tuple[float, float, float]] = field(default_factory=list)
    test: float = 0.0

    def at(self, column: int, limit: float) -> float | None:
        """The last validation accuracy within a number of seconds (column 0) or passes (column 1)."""
        within = [point for point in self.points if point[column] <= limit]
        return within[-1][2] if within and self.points[-1][column] >= limit else None


class Weights:
    """The weights of a network as one vector, and the losses of many vectors.

    Args:
        model: the network.
        loss: the per-example loss.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.named = dict(model.named_parameters())

    def vector(self) -> Tensor:
        """The weights [D]."""
        return torch.cat([weight.detach().flatten() for weight in self.named.values()])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """The weights of a vector [D] by name."""
        parts = torch.split(vector, [weight.numel() for weight in self.named.values()])
        return {name: part.view_as(self.named[name]) for name, part in zip(self.named, parts, strict=True)}

    def mean_loss(self, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch."""
        return self.loss(functional_call(self.model, self.split(vector), (x,)), y).mean()

    def losses(self, vectors: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The mean losses of a batch [P], by vectors [P, D]."""
        with torch.no_grad():
            found: Tensor = vmap(lambda vector: self.mean_loss(vector, x, y))(vectors)
        return found

    def assign(self, vector: Tensor) -> None:
        """Puts a vector into the network."""
        with torch.no_grad():
            for name, part in self.split(vector).items():
                self.named[name].copy_(part)


def spsa(weights: Weights, x: Tensor, y: Tensor, pairs: int, stream: torch.Generator) -> Tensor:
    """Returns the mean of (L(θ + cΔ) - L(θ - cΔ)) Δ / 2c over random signs Δ, an estimate of ∇L [D]."""
    theta = weights.vector()
    signs = 2.0 * torch.randint(0, 2, (pairs, len(theta)), generator=stream) - 1
    losses = weights.losses(torch.cat([theta + DISTANCE * signs, theta - DISTANCE * signs]), x, y)
    return (losses[:pairs] - losses[pairs:]) @ signs / (2 * DISTANCE * pairs)


def forward_gradient(weights: Weights, x: Tensor, y: Tensor, directions: int, stream: torch.Generator) -> Tensor:
    """Returns the mean of (∇L·v) v over Gaussian directions v, an estimate of ∇L [D]."""
    theta = weights.vector()
    v = torch.randn(directions, len(theta), generator=stream)

    def slope(direction: Tensor) -> Tensor:
        found: Tensor = jvp(lambda vector: weights.mean_loss(vector, x, y), (theta,), (direction,))[1]
        return found

    slopes: Tensor = vmap(slope)(v)
    return slopes @ v / directions


Step = Callable[[Tensor, Tensor], float]  # trains on a batch, and returns the forward passes
StepOf = Callable[[Config, data.Dataset, float], tuple[nn.Module, Step]]  # of a configuration and a learning rate


def step_of_glr(config: Config, dataset: data.Dataset, rate: float) -> tuple[nn.Module, Step]:
    """A step by the configured estimator."""
    net, loss = network_of(config, dataset, torch.device("cpu")).train(), loss_of(config)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    passes = net.cost(*dataset.train.batch(slice(0, config.training.batch_size)), loss)[1]  # without a budget

    def step(x: Tensor, y: Tensor) -> float:
        before = net.allotment
        optimizer.zero_grad()
        net.estimate(x, y, loss)
        optimizer.step()
        after = net.allotment
        if after is None:
            return passes
        return after.forward_passes + (0.0 if after is before else after.measuring)

    return net.model, step


def step_along(estimate: Callable[[Weights, Tensor, Tensor, int, torch.Generator], Tensor], pairs: int) -> StepOf:
    """A step by an estimate along random directions of all weights."""

    def step_of(config: Config, dataset: data.Dataset, rate: float) -> tuple[nn.Module, Step]:
        model = network_of(config, dataset, torch.device("cpu")).model
        weights = Weights(model, loss_of(config))
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        stream = generator(Key(config.seed))

        def step(x: Tensor, y: Tensor) -> float:
            for name, part in weights.split(estimate(weights, x, y, pairs, stream)).items():
                weights.named[name].grad = part
            optimizer.step()
            return 2.0 * pairs

        return model, step

    return step_of


def step_of_pgpe(pairs: int) -> StepOf:
    """A step of EvoTorch's PGPE."""

    def step_of(config: Config, dataset: data.Dataset, rate: float) -> tuple[nn.Module, Step]:
        from evotorch import Problem
        from evotorch.algorithms import PGPE

        model = network_of(config, dataset, torch.device("cpu")).model
        weights = Weights(model, loss_of(config))
        batch: list[Tensor] = []
        problem = Problem(
            "min",
            lambda vectors: weights.losses(vectors, *batch),
            solution_length=len(weights.vector()),
            initial_bounds=(-1, 1),
            vectorized=True,
            seed=config.seed,
        )
        searcher = PGPE(
            problem,
            popsize=2 * pairs,
            center_learning_rate=rate,
            stdev_learning_rate=0.1,
            stdev_init=DISTANCE,
            optimizer="adam",
            center_init=weights.vector(),
        )

        def step(x: Tensor, y: Tensor) -> float:
            batch[:] = x, y
            searcher.step()
            weights.assign(torch.as_tensor(searcher.status["center"]).as_subclass(Tensor))
            return 2.0 * pairs

        return model, step

    return step_of


def methods_of(config: Config, pairs: int) -> dict[str, StepOf]:
    """The methods that can train the network of a configuration."""
    found = {"GLR": step_of_glr, "SPSA": step_along(spsa, pairs)}
    if has_derivative(loss_of(config)):
        found["forward gradient"] = step_along(forward_gradient, pairs)
    try:
        import evotorch  # noqa: F401
    except ImportError:
        print("PGPE needs EvoTorch: pip install 'glr_dist[bench]'", file=sys.stderr)
    else:
        logging.getLogger("evotorch").setLevel(logging.WARNING)
        found["PGPE (EvoTorch)"] = step_of_pgpe(pairs)
    return found


def accuracy(model: nn.Module, split: data.Split) -> float:
    """The accuracy of a network without noise."""
    x, y = split.batch(slice(None))
    training = model.training
    with torch.no_grad():
        outputs = model.eval()(x)
    model.train(training)
    return float((outputs.argmax(1) == y).double().mean())


def train(
    step_of: StepOf,
    config: Config,
    dataset: data.Dataset,
    rate: float,
    seconds: float,
    tell: Callable[[float], object],
) -> Training:
    """Trains for some processor seconds; evaluation does not count."""
    model, step = step_of(config, dataset, rate)
    found, spent, passes, size = Training(rate), 0.0, 0.0, config.training.batch_size
    due = [seconds * (number / EVALUATIONS) ** 2 for number in range(1, EVALUATIONS + 1)]  # more often at the start
    epoch = 0
    while due:
        order = torch.randperm(len(dataset.train), generator=generator(Key(config.seed, step=epoch, role=Role.SHUFFLE)))
        epoch += 1
        for index in torch.split(order[: max(len(order) // size, 1) * size], size):
            x, y = dataset.train.batch(index)
            started = time.process_time()
            passes += step(x, y)
            elapsed = time.process_time() - started
            spent += elapsed
            found.steps += 1
            tell(elapsed)
            if spent >= due[0]:
                found.points.append((spent, passes, accuracy(model, dataset.validation)))
                due = [each for each in due if each > spent]
                if not due:
                    break
    found.test = accuracy(model, dataset.test)
    return found


def table(best: Mapping[str, Training], seconds: float) -> str:
    """The accuracies of each method within some passes and some seconds."""
    marks = [(1, 1e3), (1, 1e4), (1, 1e5), (0, seconds / 10), (0, seconds)]
    heads = [f"{int(limit):,} passes" if column else f"{limit:g} s" for column, limit in marks]
    lines = [
        f"| | learning rate | passes a step | ms a step | {' | '.join(heads)} | test |",
        "| --- " * (len(heads) + 5) + "|",
    ]
    for name, one in best.items():
        spent, passes, _ = one.points[-1]
        cells = [one.at(column, limit) for column, limit in marks[:-1]] + [one.points[-1][2]]
        shown = " | ".join("" if cell is None else f"{100 * cell:.1f}" for cell in cells)
        lines.append(
            f"| {name} | {one.rate:g} | {passes / one.steps:.1f} | {1000 * spent / one.steps:.1f} | {shown} | "
            f"{100 * one.test:.1f} |"
        )
    return "\n".join(lines)


def figure(best: Mapping[str, Training]) -> Any:
    """The validation accuracy of each method against forward passes and against seconds."""
    found = figure_of(9, 4)
    for axes, column, label in zip(found.subplots(1, 2), (1, 0), ("forward passes", "processor seconds"), strict=True):
        for (name, one), marker in zip(best.items(), "os^D", strict=False):
            axes.plot(
                [point[column] for point in one.points], [point[2] for point in one.points], f"{marker}-", label=name
            )
        axes.set(xscale="log", xlabel=label, ylabel="validation accuracy", ylim=(0, 1))
        axes.grid(alpha=0.3)
    found.axes[0].legend()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains by each method, and prints the table; returns the exit code, 2 for a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="+", metavar="CONFIG.yaml key=value")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor seconds of a training (60)")
    parser.add_argument("--pairs", type=int, default=50, help="antithetic pairs of weight vectors in a step (50)")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help=f"learning rates {RATES}")
    parser.add_argument("--out", type=Path, help="folder for gradient_free.json, .png and .pdf")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compare(options)
    except UserError as error:
        print(f"gradient_free: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    return 0


def compare(options: argparse.Namespace) -> dict[str, Training]:
    """Trains by each method with each learning rate; returns the best training of each."""
    if min(options.seconds, options.pairs, *options.rates) <= 0:
        raise ConfigError("--seconds, --pairs and --rates: numbers greater than 0 are allowed")
    paths = [given for given in options.config if "=" not in given]
    if len(paths) != 1:
        raise ConfigError(f"CONFIG.yaml: one file is needed, {len(paths)} were given")
    config = load_config(paths[0], [given for given in options.config if "=" in given])
    dataset = data.load(config.data, config.code)
    found: dict[str, list[Training]] = {}
    methods = methods_of(config, options.pairs)
    total = len(methods) * len(options.rates) * options.seconds
    with tqdm(
        total=total, unit="s", bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s", disable=not sys.stderr.isatty()
    ) as bar:
        for name, step_of in methods.items():
            bar.set_description(name)
            found[name] = [train(step_of, config, dataset, rate, options.seconds, bar.update) for rate in options.rates]
    best = {name: max(tried, key=lambda one: one.points[-1][2]) for name, tried in found.items()}
    print(table(best, options.seconds))
    if options.out is not None:
        report = {name: [asdict(one) for one in tried] for name, tried in found.items()}
        content = {"config": config.model_dump(mode="json"), "pairs": options.pairs, "trainings": report}
        write_atomically(options.out.absolute() / "gradient_free.json", (json.dumps(content, indent=2) + "\n").encode())
        draw(options.out.absolute() / "gradient_free.png", lambda: figure(best))
    return best


if __name__ == "__main__":
    sys.exit(main())
