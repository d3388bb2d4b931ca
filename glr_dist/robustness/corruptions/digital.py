"""Distortion, pixelation and compression.  Shapes: x [N, C, H, W] -> [N, C, H, W], not yet clipped to [0, 1]."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from glr_dist.robustness.corruptions.blur import smooth


def elastic_transform(x: Tensor, c: tuple[float, float, float], stream: torch.Generator) -> Tensor:
    """Applies a random affine map, then a random smooth displacement of every pixel, with linear interpolation.

    c holds the size of the displacements, the standard deviation of the filter that smooths them, and the maximum shift
    of the three points that define the affine map, all in units of the shorter side of the image.
    """
    n, _, height, width = x.shape
    side = min(height, width)
    size, sigma, shift = (side * factor for factor in c)
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([right, down, torch.ones_like(down)], -1).float()  # [H, W, 3]: x, y, 1

    # The three points and their shifted places: moved · A = points defines the map from new places to old ones.
    arm = max(side // 3, 1)  # at least 1: in the smallest images the points would coincide
    points = torch.tensor([width // 2, height // 2]) + arm * torch.tensor([[1, 1], [1, -1], [-1, -1]])
    moved = points + shift * (2 * torch.rand(n, 3, 2, generator=stream, dtype=torch.float64) - 1)
    affine = np.linalg.solve(functional.pad(moved, (0, 1), value=1).numpy(), points.double().expand(n, 3, 2).numpy())
    rows = torch.from_numpy(affine).float().view(n, 3, 1, 1, 2)
    x = _sampled(x, places[..., :1] * rows[:, 0] + places[..., 1:2] * rows[:, 1] + rows[:, 2], "mirror")

    field = 2 * torch.rand(n, 2, height, width, generator=stream) - 1
    field = size * smooth(field, sigma, mode="reflect", truncate=3.0)
    return _sampled(x, places[..., :2] + field.permute(0, 2, 3, 1), "reflect")


def _sampled(x: Tensor, places: Tensor, border: str) -> Tensor:
    """Samples the image at `places` [N, H, W, 2] (x, y in pixels) with linear interpolation.

    The image is reflected at the centres of its border pixels ("mirror") or at their outer edges ("reflect").
    """
    sides = torch.tensor([x.shape[3], x.shape[2]])
    # In the units of grid_sample, -1 and 1 are the centres of the border pixels or their outer edges.
    mirror = border == "mirror"
    units = 2 * places / (sides - 1).clamp(min=1) - 1 if mirror else (2 * places + 1) / sides - 1
    return functional.grid_sample(x, units, padding_mode="reflection", align_corners=mirror)


def pixelate(x: Tensor, c: float, stream: torch.Generator) -> Tensor:
    """Replaces the boxes of a grid of int(c H) by int(c W) by their means: Pillow's BOX filter, down and up."""
    for dim in (3, 2):
        x = _boxed(x, dim, max(int(x.shape[dim] * c), 1))
    return x


def _boxed(x: Tensor, dim: int, boxes: int) -> Tensor:
    """Replaces each pixel by the mean of the interval that its centre lies in; `boxes` equal intervals along `dim`."""
    side = x.shape[dim]
    first, stop = _boxes(side, boxes)
    sums = np.pad(x.numpy(), [(int(axis == dim), 0) for axis in range(x.ndim)]).cumsum(dim, dtype=np.float64)
    counts = (stop - first).reshape(-1, *[1] * (x.ndim - 1 - dim))
    means = (sums.take(stop, dim) - sums.take(first, dim)) / counts
    up = ((np.arange(side) + 0.5) * (boxes / side)).astype(np.int64)
    return torch.from_numpy(means.astype(np.float32).take(up, dim))


def _boxes(side: int, boxes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the first pixel of each box and the pixel after its last.

    The centre of a pixel often lies on the border of two boxes, where rounding decides. These are therefore Pillow's
    own operations in their order.
    """
    width = side / boxes
    centres = (np.arange(boxes)[:, None] + 0.5) * width
    pixels = np.arange(side)
    scaled = (pixels - centres + 0.5) * (1 / width)
    inside = (scaled > -0.5) & (scaled <= 0.5)
    inside &= (pixels >= np.floor(centres - width / 2 + 0.5)) & (pixels < np.floor(centres + width / 2 + 0.5))
    first: NDArray[np.int64] = inside.argmax(1)
    return first, first + inside.sum(1)


def jpeg_compression(x: Tensor, c: int, stream: torch.Generator) -> Tensor:
    """Encodes and decodes each image as a JPEG file of quality c, with 8 bits per element."""
    levels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(np.stack([_through_jpeg(image, c) for image in levels])).permute(0, 3, 1, 2) / 255


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)
