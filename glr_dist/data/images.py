"""Folders of encoded images, such as JPEG files: one folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from glr_dist.config import Data
from glr_dist.data.decoded import decoded
from glr_dist.data.split import Split
from glr_dist.errors import ConfigError
from glr_dist.text import shown

_PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def image_folder(data: Data) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The images in the folder `data.path`: `train/`, `val/`, `test/` with a folder for each class, or only the latter.

    The classes are the folders of all parts, in alphabetical order.

    Raises:
        ConfigError: the folder holds no images, an image cannot be decoded, or sizes differ.
    """
    assert data.path is not None
    root = Path(data.path)
    if not root.is_dir():
        raise ConfigError(f"data.path: {root} is not a folder; use data.name 'arrays' or 'table' for a file")
    folders = {part: root / name for part, names in _PARTS.items() for name in names if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    listed = {part: _by_class(folder) for part, folder in folders.items()}
    names = tuple(sorted({name for classes in listed.values() for name in classes}))
    if len(names) < 2:
        raise ConfigError(
            f"data.path: {root} is not allowed: a folder for each class, or train/, val/ and test/ with such folders"
            f" (images in {len(names)} folder{'s' * (len(names) != 1)} were found)"
        )
    number = {name: index for index, name in enumerate(names)}
    parts = {}
    for part, classes in listed.items():
        if not classes:
            raise ConfigError(f"data.path: {folders[part]} holds no images in folders of classes; remove it or fill it")
        files = [(path, number[name]) for name, paths in sorted(classes.items()) for path in paths]
        parts[part] = decoded(files, data, root)
    return parts, names


def tiny_imagenet(data: Data) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Tiny-ImageNet in its original layout: 200 classes, images of 64 x 64 pixels (Le & Yang, Stanford CS231n).

    The validation images, whose classes are in `val_annotations.txt`, are the test set: those of the test set are not
    published. The folder is `data.path`, or else `tiny-imagenet-200` in the folder of the data.

    Raises:
        ConfigError: a file is missing, or an image cannot be decoded.
    """
    assert data.root is not None
    root = Path(data.path) if data.path else Path(data.root) / "tiny-imagenet-200"
    if not (root / "wnids.txt").is_file():
        raise ConfigError(
            f"data.root: tiny_imagenet is not in {root.parent} (wnids.txt is missing in {root.name}); set data.root or "
            "GLR_DATA to the folder that contains tiny-imagenet-200, or data.path to it"
        )
    names = tuple(sorted((root / "wnids.txt").read_text(encoding="utf-8").split()))
    number = {name: index for index, name in enumerate(names)}
    train = [(path, number[name]) for name in names for path in _images_in(root / "train" / name)]
    annotations = root / "val" / "val_annotations.txt"
    try:
        rows = [line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines() if line]
        test = [(root / "val" / "images" / row[0], number[row[1]]) for row in rows]
    except (OSError, IndexError, KeyError) as error:
        raise ConfigError(f"data.root: {annotations} is missing or damaged ({shown(str(error))})") from None
    if not train:
        raise ConfigError(f"data.root: {root / 'train'} does not hold the images of the classes in wnids.txt")
    return {"train": decoded(train, data, root), "test": decoded(test, data, root)}, names


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """Returns the images in the folders of a folder, by the name of the folder; empty and hidden ones are left out."""
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    classes = {path.name: _images_in(path) for path in folders}
    return {name: paths for name, paths in classes.items() if paths}


def _images_in(folder: Path) -> list[Path]:
    found = []
    for place, _, names in os.walk(folder):  # `rglob` and the comparison of paths take seconds for 100,000 images
        path = Path(place)
        images = [name for name in names if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")]
        found += [((*path.parts, name), path / name) for name in images]
    return [path for _, path in sorted(found)]
