"""Decodes images once, in parallel, into a file in the cache folder that later runs map into memory."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from glr_dist.config import Data
from glr_dist.data.split import Split
from glr_dist.errors import ConfigError
from glr_dist.files import cache_folder, write_atomically
from glr_dist.text import one_line

_AHEAD = 256  # images that are decoded before they are written
_SEPARATE = 2**12  # images below which no progress bar is shown


def decoded(files: Sequence[tuple[Path, int]], data: Data, root: Path) -> Split:
    """Returns images [N, C, H, W] uint8 with their classes.

    The name of the cached file is a digest of the paths, sizes and times of the images and of the settings, so that a
    changed image is decoded again. Processes that start at the same time each decode, and the first file stays.

    Args:
        files: the images and the numbers of their classes.
        data: the section, with the settings of decoding.
        root: the folder that holds all images.

    Raises:
        ConfigError: an image cannot be decoded or has another size, or the cache cannot be written.
    """
    try:
        place = cache_folder() / f"images-{_key(files, data, root)}.npy"
        kept = _kept(place)
        pixels = None if kept is None else _mapped(place)
        if kept is None or pixels is None:
            kept = _decode([path for path, _ in files], data, place)
            pixels = _mapped(place)
        assert pixels is not None
    except OSError as error:
        where = Path(error.filename or cache_folder())
        remedy = "; GLR_CACHE names the cache" if where.is_relative_to(cache_folder()) else ""
        raise ConfigError(f"{where}: cannot be read or written ({error.strerror}){remedy}") from None
    labels = torch.tensor([files[index][1] for index in kept], dtype=torch.int64)
    return Split(pixels, labels, 255)


def _key(files: Sequence[tuple[Path, int]], data: Data, root: Path) -> str:
    settings = [data.resize, data.crop, data.channels, data.skip_corrupt, PIL.__version__]
    sha = hashlib.sha256(json.dumps(settings).encode())
    begin = len(f"{root}{os.sep}")
    for path, _ in files:
        status = path.stat()
        sha.update(f"{str(path)[begin:]}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "replace"))
    return sha.hexdigest()[:24]


def _kept(place: Path) -> list[int] | None:
    """Returns the indices of the images in a cached file; None if it is missing."""
    try:
        kept: list[int] = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return kept if place.exists() else None


def _mapped(place: Path) -> Tensor | None:
    """Maps a cached file into memory; returns None if it is damaged."""
    try:
        return torch.from_numpy(np.load(place, mmap_mode="c"))  # "c": changes stay in memory
    except (ValueError, EOFError):
        return None


def _decode(paths: Sequence[Path], data: Data, place: Path) -> list[int]:
    """Decodes images into a file; returns the indices of those that could be decoded."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    kept: list[int] = []
    corrupt: list[str] = []
    array: Any = None
    bar = tqdm(
        total=len(paths), desc="decoding images", unit="image", file=sys.stderr, disable=len(paths) < _SEPARATE or None
    )
    try:
        with ThreadPoolExecutor(os.cpu_count()) as threads, bar:
            for start in range(0, len(paths), _AHEAD):
                for index, found in enumerate(
                    threads.map(lambda path: image(path, data), paths[start : start + _AHEAD]), start
                ):
                    bar.update()
                    if isinstance(found, str):
                        corrupt.append(found)
                        continue
                    if array is None:
                        array = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(paths), *found.shape))
                    if found.shape != array.shape[1:]:
                        _refuse_size(paths[index], found.shape, paths[kept[0]], array.shape[1:])
                    array[len(kept)] = found
                    kept.append(index)
        if corrupt and not data.skip_corrupt:
            more = f" and {len(corrupt) - 1:,} others" if len(corrupt) > 1 else ""
            raise ConfigError(f"data.path: {corrupt[0]}{more}; data.skip_corrupt=true leaves such images out")
        if array is None:
            raise ConfigError(f"data.path: none of {len(paths):,} images can be decoded ({corrupt[0]})")
        if corrupt:
            print(f"warning: {len(corrupt):,} images are left out: {corrupt[0]}", file=sys.stderr)
            rest = np.lib.format.open_memmap(
                whole := partial.with_suffix(".whole"), "w+", np.uint8, (len(kept), *array.shape[1:])
            )
            rest[:] = array[: len(kept)]
            rest.flush()
            whole.replace(partial)
        else:
            array.flush()
        partial.replace(place)
        write_atomically(place.with_suffix(".json"), json.dumps(kept).encode())
    finally:
        partial.unlink(missing_ok=True)
        partial.with_suffix(".whole").unlink(missing_ok=True)
    return kept


def image(path: Path, data: Data) -> np.ndarray[Any, Any] | str:
    """Returns the pixels [C, H, W] of an image, or why it cannot be decoded."""
    try:
        with Image.open(path) as opened:
            opened.load()
            return pixels(opened, data, str(path))
    except ConfigError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        return f"{path} cannot be decoded ({one_line(error)})"


def pixels(image: Image.Image, data: Data, where: str) -> np.ndarray[Any, Any]:
    """Returns the pixels [C, H, W] uint8 of an image, resized and cropped.

    Raises:
        ConfigError: the image is smaller than `data.crop`.
        ValueError: its pixels are numbers of 32 bits, whose white is not known.
    """
    if image.mode.startswith("I;16"):  # Pillow would cut off what is above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits; 8 and 16 bits are allowed")
    image = image.convert("RGB" if data.channels == 3 else "L")
    if data.resize is not None:
        image = image.resize(_resized(image.size, data.resize), Image.Resampling.BILINEAR)
    if data.crop is not None:
        left, top = (image.width - data.crop) // 2, (image.height - data.crop) // 2
        if min(left, top) < 0:
            raise ConfigError(
                f"data.crop: {data.crop} is not allowed: {where} has {image.height} x {image.width} pixels; set "
                "data.resize too"
            )
        image = image.crop((left, top, left + data.crop, top + data.crop))
    found = np.asarray(image)
    return found.transpose(2, 0, 1) if found.ndim == 3 else found[None]


def _resized(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """Returns width and height of a resized image."""
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    width, height = size
    short = min(width, height)
    return max(1, round(width * resize / short)), max(1, round(height * resize / short))


def _refuse_size(path: Path, shape: Sequence[int], first: Path, other: Sequence[int]) -> None:
    raise ConfigError(
        f"data.path: {path} has {shape[1]} x {shape[2]} pixels and {first} {other[1]} x {other[2]}; set data.resize to "
        "[height, width], or to the shorter side and data.crop to a square"
    )
