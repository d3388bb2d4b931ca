"""Trains a network through JPEG compression, which has no derivative.

    python jobs/black_box.py [--quality 30] [--epochs 10] [--seeds 3]

The first layer draws an image of 4 x 4 pixels from a handwritten digit, the image is compressed and decompressed, and
a linear layer classifies it. The same network is trained three ways on the digits data set:

- without JPEG: backpropagation, with nothing between the layers.
- GLR: noise on the logits of both layers, and redraws of each. The codec is only called.
- last layer alone: the layer before the codec keeps its initial weights.

The table gives the test accuracy after each epoch.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

import glr_dist
from glr_dist.config import Data
from glr_dist.data import Dataset, load

METHODS = ("without JPEG", "GLR", "last layer alone")
BATCH = 64
SIDE = 4  # pixels
Array = np.ndarray[Any, Any]


def jpeg(image: Array, quality: int) -> Array:
    """Returns an image [1, H, W] in [0, 1] after a JPEG round trip."""
    buffer = io.BytesIO()
    Image.fromarray((image[0].clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), dtype=np.float32)[None] / 255


def trained(
    method: str, quality: int, data: Dataset, epochs: int, seed: int, tell: Callable[[], object]
) -> list[float]:
    """Returns the test accuracy after each epoch; calls `tell` after each."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        before, after = nn.Linear(64, SIDE * SIDE), nn.Linear(SIDE * SIDE, 10)
    shape = (1, SIDE, SIDE)
    codec = glr_dist.nn.BlackBox(partial(jpeg, quality=quality), each=True, shape=shape)
    middle = nn.Identity() if method == "without JPEG" else codec
    model = nn.Sequential(nn.Flatten(), before, nn.Sigmoid(), nn.Unflatten(1, shape), middle, nn.Flatten(), after)
    before.requires_grad_(method != "last layer alone")
    net = (
        glr_dist.GLR(model, None, "pathwise", seed=seed)
        if method == "without JPEG"
        else glr_dist.GLR(model, 0.5, copies=16, seed=seed)
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    stream = torch.Generator().manual_seed(seed)
    x, y = data.train.batch(slice(None))
    test_x, test_y = data.test.batch(slice(None))
    accuracies = []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=stream)
        for chosen in order[: len(x) // BATCH * BATCH].view(-1, BATCH):
            optimizer.zero_grad()
            net.estimate(x[chosen], y[chosen])
            optimizer.step()
        with torch.no_grad():
            accuracies.append((model(test_x).argmax(1) == test_y).float().mean().item())
        tell()
    return accuracies


def main(arguments: list[str] | None = None) -> dict[str, list[list[float]]]:
    """Trains with each method and seed, and prints the table; returns the accuracies [seed][epoch] by method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", type=int, default=30, help="quality of the JPEG images, 1 to 95 (30)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs (10)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    options = parser.parse_args(arguments)
    data = load(Data(name="digits"))
    found: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    with tqdm(total=len(METHODS) * options.seeds * options.epochs, unit="epoch") as bar:
        for method in METHODS:
            for seed in range(options.seeds):
                found[method].append(trained(method, options.quality, data, options.epochs, seed, bar.update))
    print(f"test accuracy, JPEG of quality {options.quality}, mean of {options.seeds} seeds")
    print(f"{'epoch':<18}" + "".join(f"{epoch:>7}" for epoch in range(1, options.epochs + 1)))
    for method, runs in found.items():
        print(f"{method:<18}" + "".join(f"{sum(epoch) / len(epoch):>7.3f}" for epoch in zip(*runs, strict=True)))
    return found


if __name__ == "__main__":
    main()
