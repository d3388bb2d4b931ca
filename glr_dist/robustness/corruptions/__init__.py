"""Corruptions: the common-corruptions benchmark for grey and colour images of any size.

A corruption is a function (x, c, stream) -> x' of a batch of images, the constants of a severity, and a random stream;
each image of the batch has its own draws. Four corruptions of the benchmark are omitted: frost needs photographs of
ice, snow and spatter are designed for photographs, and saturate is undefined for grey images.

Reference: Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and perturbations,
ICLR 2019.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from glr_dist.errors import UserError
from glr_dist.robustness.corruptions.blur import defocus_blur, gaussian_blur, motion_blur, zoom_blur
from glr_dist.robustness.corruptions.constants import CONSTANTS
from glr_dist.robustness.corruptions.digital import elastic_transform, jpeg_compression, pixelate
from glr_dist.robustness.corruptions.glass import glass_blur
from glr_dist.robustness.corruptions.light import brightness, contrast, fog
from glr_dist.robustness.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from glr_dist.streams import Key, Role, generator

__all__ = ["CONSTANTS", "CORRUPTIONS", "Corruption", "corrupt"]

Corruption = Callable[[Tensor, Any, torch.Generator], Tensor]
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}


def corrupt(
    name: str, x: Tensor, severity: int, *, constants: str = "cifar_c", seed: int = 0, block: int = 0
) -> Tensor:
    """Returns corrupted images: a pure function of the arguments.

    The computation runs on the CPU in float32, so the result is the same for every device. No gradient flows through.

    Args:
        name: a name in `CORRUPTIONS`.
        x: images [N, C, H, W] in [0, 1], C 1 or 3, of any floating type, on any device.
        severity: 1 to 5.
        constants: benchmark that defines the severities: "cifar_c" (images of about 32 x 32 pixels) or "imagenet_c".
        seed: seed of the random draws.
        block: number of this block of examples in its data set; each block has its own draws.

    Returns:
        Images in [0, 1] with the shape, type and device of x.

    Raises:
        UserError: unknown name or constants, a severity outside 1 to 5, or x is not a batch of images in [0, 1].
    """
    _check(name, x, severity, constants)
    if not x.numel():  # some filters reject an empty array
        return x.detach().clone()
    key = Key(seed, step=zlib.crc32(name.encode()), site=severity, example_block=block, role=Role.CORRUPTION)
    clean = x.detach().to("cpu", torch.float32).contiguous()
    corrupted = CORRUPTIONS[name](clean, CONSTANTS[constants][name][severity - 1], generator(key))
    return corrupted.clamp(0, 1).to(x.device, x.dtype)


def _check(name: str, x: Tensor, severity: int, constants: str) -> None:
    def refuse(field: str, value: object, allowed: str) -> UserError:
        return UserError(f"{field}: {value} is not allowed: {allowed}")

    def one_of(known: Iterable[str]) -> str:
        return "one of " + ", ".join(known)

    if name not in CORRUPTIONS:
        raise refuse("corruption", repr(name), one_of(CORRUPTIONS))
    if constants not in CONSTANTS:
        raise refuse("constants", repr(constants), one_of(CONSTANTS))
    if severity not in (1, 2, 3, 4, 5):
        raise refuse("severity", severity, "1 to 5")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not all(x.shape[2:]):
        raise refuse("images", f"shape {list(x.shape)}", "[N, C, H, W] with C 1 or 3")
    if not x.is_floating_point():
        raise refuse("images", x.dtype, "a floating type")
    outside = x[~((x >= 0) & (x <= 1))]  # NaN is neither
    if outside.numel():
        raise refuse("images", outside[0].item(), "finite values in [0, 1]")
