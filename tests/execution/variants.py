"""Networks and options that between them use every kind of work item, tape and result."""

from __future__ import annotations

import sys

import torch
from ray import cloudpickle
from torch import Tensor, nn

import glr_dist
from glr_dist.execution.executor import Executor
from glr_dist.glr import GLR
from glr_dist.nn import Dropout, Heaviside, SharedBatchNorm, Staircase, noisy_weights
from glr_dist.trees import Tree, equal

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors' processes cannot import a test
ZERO_ONE, CROSS_ENTROPY = glr_dist.losses.zero_one, glr_dist.losses.cross_entropy


class Residual(nn.Module):
    """A block with a site inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


def perceptron(unit: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), unit, nn.Linear(24, 12), unit, nn.Linear(12, 3))


def mixed() -> nn.Module:
    """Convolutions, a LayerNorm that the next site's segment owns, a nested site, keyed dropout, a buffer."""
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LayerNorm(256), nn.Linear(256, 16), nn.Sigmoid()
    )
    net = nn.Sequential(body, Dropout(0.25), Residual(16), nn.Linear(16, 3))
    net.register_buffer("unused", torch.ones(2, dtype=torch.int64))
    return net


class Recurrent(nn.Module):
    """Reads the rows of an image with one cell, whose calls are sites."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head, self.unit = nn.Linear(8 + 6, 6), nn.Linear(6, 3), Heaviside()

    def forward(self, images: Tensor) -> Tensor:
        h = images.new_zeros(len(images), 6)
        for row in range(3):
            h = self.unit(self.cell(torch.cat([images[:, 0, row], h], 1)))
        return self.head(h)


class Named(nn.Module):
    """Takes keyword inputs, changes one in place, and returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 12), nn.Linear(12, 3)

    def forward(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu_(self.body(image.flatten(1).mul_(2)))
        return {"hidden": hidden, "logits": self.head(hidden * mask)}


def normalized() -> nn.Module:
    """Batch norms that take their statistics from the shared pass, one of them called twice."""
    norm = SharedBatchNorm(12)
    return nn.Sequential(nn.Flatten(), SharedBatchNorm(64), nn.Linear(64, 12), norm, nn.Tanh(), norm, nn.Linear(12, 3))


# name -> (network, loss, options)
VARIANTS = {
    "conditional": (lambda: perceptron(Heaviside()), ZERO_ONE, {"copies": 60}),
    "conditional, three passes": (lambda: perceptron(Heaviside()), CROSS_ENTROPY, {"copies": 48, "passes": 3}),
    "a share of the examples, learned scales": (
        lambda: perceptron(nn.Sigmoid()),
        CROSS_ENTROPY,
        {"copies": 48, "passes": 2, "noise": glr_dist.Gaussian(0.4, learn="unit"), "share": 0.4},
    ),
    "a share of the examples, mixed network": (
        mixed,
        CROSS_ENTROPY,
        {
            "copies": 8,
            "share": 0.4,
            "redraw": {"0.0": "column_space", "*": "copies"},
            "feedback": "control_variate",
            "head": "auto",
        },
    ),
    "layerwise": (lambda: perceptron(Heaviside()), ZERO_ONE, {"estimator": "layerwise", "copies": 60}),
    "joint": (lambda: perceptron(Heaviside()), ZERO_ONE, {"estimator": "joint", "copies": 40}),
    "joint, clean baseline off": (
        lambda: perceptron(Heaviside()),
        CROSS_ENTROPY,
        {"estimator": "joint", "copies": 40, "baseline": "leave_one_out", "sampler": "iid"},
    ),
    "pathwise": (lambda: perceptron(nn.Sigmoid()), CROSS_ENTROPY, {"estimator": "pathwise", "passes": 3}),
    "learned scales": (
        lambda: perceptron(nn.Sigmoid()),
        CROSS_ENTROPY,
        {"copies": 48, "noise": glr_dist.Gaussian(0.4, learn="unit"), "head": "derivative"},
    ),
    "learned scales, pathwise": (
        lambda: perceptron(nn.Sigmoid()),
        CROSS_ENTROPY,
        {"estimator": "pathwise", "noise": glr_dist.Laplace(0.4, learn="site")},
    ),
    "expected head, learned scales": (
        lambda: perceptron(Heaviside()),
        ZERO_ONE,
        {"copies": 48, "passes": 2, "noise": glr_dist.Gaussian(0.4, learn="unit"), "head": "expected"},
    ),
    "expected head, layerwise": (
        lambda: perceptron(Heaviside()),
        ZERO_ONE,
        {"estimator": "layerwise", "copies": 48, "noise": glr_dist.Laplace(0.4), "head": "auto"},
    ),
    "expected head, joint": (
        lambda: perceptron(Heaviside()),
        ZERO_ONE,
        {"estimator": "joint", "copies": 40, "noise": glr_dist.Gaussian(0.4, learn="site"), "head": "expected"},
    ),
    "flips": (
        lambda: perceptron(Staircase(2)),
        ZERO_ONE,
        {
            "copies": 48,
            "passes": {"1": 1, "*": 2},
            "noise": glr_dist.Gaussian(0.4, learn="unit"),
            "redraw": {"5": "copies", "*": "flips"},
            "head": "expected",
        },
    ),
    "levels": (
        lambda: perceptron(Staircase(2)),
        ZERO_ONE,
        {
            "copies": 48,
            "passes": 2,
            "noise": glr_dist.Gaussian(0.4, learn="unit"),
            "redraw": "auto",
            "head": "expected",
        },
    ),
    "levels of threshold pairs": (
        lambda: perceptron(Heaviside()),
        ZERO_ONE,
        {"copies": 48, "passes": 2, "noise": glr_dist.Laplace(0.4), "redraw": "auto", "head": "expected"},
    ),
    "feedback": (
        mixed,
        CROSS_ENTROPY,
        {"copies": 8, "passes": 2, "feedback": "control_variate", "redraw": "auto", "head": "derivative"},
    ),
    "feedback, expected head, learned scales": (
        lambda: perceptron(Heaviside()),
        ZERO_ONE,
        {
            "copies": 8,
            "noise": glr_dist.Laplace(0.4, learn="unit"),
            "feedback": "control_variate",
            "head": "expected",
        },
    ),
    "feedback, biased": (
        mixed,
        CROSS_ENTROPY,
        {"copies": 8, "passes": 2, "feedback": "biased", "redraw": {"0.0": "column_space", "*": "copies"}},
    ),
    "column space": (
        mixed,
        CROSS_ENTROPY,
        {"copies": 24, "passes": 2, "redraw": {"0.0": "column_space", "*": "auto"}},
    ),
    "column space, layerwise": (mixed, CROSS_ENTROPY, {"estimator": "layerwise", "copies": 24, "redraw": "auto"}),
    "noisy weights": (lambda: noisy_weights(mixed(), ["0.0"]), CROSS_ENTROPY, {"copies": 24, "passes": 2}),
    "sobol": (lambda: perceptron(Heaviside()), ZERO_ONE, {"copies": 32, "sampler": "sobol"}),
    "mixed network": (mixed, CROSS_ENTROPY, {"copies": 24, "passes": 2}),
    "mixed network, joint": (mixed, CROSS_ENTROPY, {"estimator": "joint", "copies": 24}),
    "calls of one module": (Recurrent, ZERO_ONE, {"copies": 24, "passes": 2}),
    "calls of one module, joint": (Recurrent, CROSS_ENTROPY, {"estimator": "joint", "copies": 24}),
    "shared batch norm": (normalized, CROSS_ENTROPY, {"copies": 24, "passes": 2}),
    "shared batch norm, pathwise": (normalized, CROSS_ENTROPY, {"estimator": "pathwise", "passes": 2}),
    "a mapping of inputs": (Named, CROSS_ENTROPY, {"copies": 24}),
    "mixed network, float64": (lambda: mixed().double(), CROSS_ENTROPY, {"copies": 24}),
}


def made(name: str, executor: Executor) -> GLR:
    """Returns the network of a variant; each site has several example blocks and several work items."""
    network, _, options = VARIANTS[name]
    torch.manual_seed(0)
    return GLR(network(), executor=executor, **{"example_block": 8, "block_elements": 2**12, **options})


def batch(name: str) -> tuple[Tree, Tensor]:
    """Returns twenty examples: two and a half example blocks."""
    stream = torch.Generator().manual_seed(1)
    x = torch.rand(20, 1, 8, 8, generator=stream)
    y = torch.randint(0, 3, (20,), generator=stream)
    if "mapping" in name:
        return {"image": x, "mask": torch.randint(0, 2, (20, 12), generator=stream)}, y
    return x.double() if "float64" in name else x, y


def trained(name: str, executor: Executor, steps: int = 3) -> dict[str, Tensor]:
    """Returns parameters, buffers, scales and loss after a few steps; the scales change after the first step."""
    net, (x, y), loss = made(name, executor), batch(name), VARIANTS[name][1]
    net.prepare(x)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.01)
    for number in range(steps):
        if number == 1 and net.noise is not None and net.noise.learn == "none":
            net.set_scale(0.6)
        optimizer.zero_grad()
        mean_loss = net.estimate(x, y, loss)
        optimizer.step()
    return {**net.state_dict(), "loss": mean_loss}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Returns whether all numbers are bitwise equal."""
    return found.keys() == expected.keys() and all(equal(found[name], expected[name]) for name in expected)
