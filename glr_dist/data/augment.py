"""Random changes of training images, keyed by the step: the same for any number of workers and after a resume."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from glr_dist.config import Augment
from glr_dist.errors import ConfigError
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import Tree


def check_images(x: Tree) -> None:
    """Refuses inputs that are not images.

    Raises:
        ConfigError: names the field.
    """
    if not (isinstance(x, Tensor) and x.dim() == 4):
        raise ConfigError("data.augment: changes images [C, H, W] only, and the inputs are others; leave it out")


def augmented(x: Tensor, augment: Augment, seed: int, step: int) -> Tensor:
    """Returns changed copies of a batch of images: shifted crops, mirror images, noise, squares cut out.

    Args:
        x: images [B, C, H, W] in [0, 1].
        augment: the changes.
        seed: seed of the run.
        step: number of the step; each step draws anew.
    """
    stream = generator(Key(seed, step=step, role=Role.AUGMENT))
    batch, _, height, width = x.shape
    # Everything is drawn on the CPU and in one order, whatever is switched on, so that each change has its own draws.
    shift = torch.rand(2, batch, generator=stream)
    mirror = (torch.rand(batch, generator=stream) < 0.5).to(x.device)
    corner = torch.rand(2, batch, generator=stream)
    if augment.flip:
        x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    if augment.crop:
        pad = augment.crop
        top, left = (shift * (2 * pad + 1)).long().clamp(max=2 * pad).to(x.device)
        padded = functional.pad(x, (pad, pad, pad, pad))
        rows = top[:, None] + torch.arange(height, device=x.device)
        columns = left[:, None] + torch.arange(width, device=x.device)
        examples = torch.arange(batch, device=x.device)[:, None, None]
        x = padded.permute(0, 2, 3, 1)[examples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if augment.noise:
        noise = torch.randn(x.shape, generator=stream, dtype=x.dtype).to(x.device)
        x = (x + augment.noise * noise).clamp(0, 1)
    if augment.cutout:
        # The square's centre is anywhere in the image, so that a border may cut it off.
        centre = (corner * torch.tensor([[height], [width]])).long().to(x.device)
        half = augment.cutout / 2
        rows = (torch.arange(height, device=x.device) + 0.5 - centre[0, :, None]).abs() <= half
        columns = (torch.arange(width, device=x.device) + 0.5 - centre[1, :, None]).abs() <= half
        x = x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
    return x
