"""Folders of images: decoded once, mapped from the cache, and refused with the name of the image that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glr_dist import data
from glr_dist.config import Data, OwnData, build
from glr_dist.data import decoded
from glr_dist.errors import ConfigError

SIZE = (6, 9)  # height, width


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def image(path: Path, seed: int, size: tuple[int, int] = SIZE, mode: str = "RGB") -> np.ndarray:
    """Writes an image without loss and returns its pixels."""
    random = np.random.default_rng(seed)
    shape = (*size, 3) if mode == "RGB" else size
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One folder for each of two classes, ten images each."""
    for seed in range(20):
        image(tmp_path / "photos" / ("cat", "dog")[seed % 2] / f"{seed:02}.png", seed)
    return tmp_path / "photos"


def loaded(folder: Path, **settings: object) -> data.Dataset:
    return data.load(build(Data, {"name": "image_folder", "path": str(folder), **settings}))


def error_of(folder: Path, **settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_pixels_and_classes_are_those_of_the_files(folder):
    dataset = loaded(folder)
    assert dataset.names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (14, 2, 4)
    expected = {
        np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(): path.parent.name for path in folder.rglob("*.png")
    }
    found = {}
    for split in (dataset.train, dataset.validation, dataset.test):
        x, y = split.batch(slice(None))
        assert x.dtype is torch.float32
        for pixels, label in zip((x * 255).round().to(torch.uint8), y, strict=True):
            found[pixels.numpy().tobytes()] = dataset.names[label]
    assert found == expected


def test_parts_have_folders_and_share_their_classes(tmp_path):
    for part, names in {"train": ("ant", "bee"), "val": ("bee", "cow"), "test": ("ant",)}.items():
        for name in names:
            image(tmp_path / "set" / part / name / "deeper" / "1.png", 1)
    dataset = loaded(tmp_path / "set")
    assert dataset.names == ("ant", "bee", "cow")
    assert [split.labels.tolist() for split in (dataset.train, dataset.validation, dataset.test)] == [
        [0, 1],
        [1, 2],
        [0],
    ]
    assert dataset.notes == ("no training example of 1 of 3 classes (cow)",)


def test_images_are_decoded_once_and_again_when_one_has_changed(folder, cache, monkeypatch):
    decodings = []
    real = decoded.image
    monkeypatch.setattr(decoded, "image", lambda path, settings: (decodings.append(path), real(path, settings))[1])
    first = loaded(folder)
    assert len(decodings) == 20
    again = loaded(folder)
    assert len(decodings) == 20
    assert again.train.digest() == first.train.digest()
    image(folder / "cat" / "00.png", 99, SIZE)
    changed = loaded(folder)
    parts = ("train", "validation", "test")
    assert [getattr(changed, part).digest() for part in parts] != [getattr(first, part).digest() for part in parts]
    assert len(decodings) == 40
    assert len(list(cache.glob("*.npy"))) == 2
    assert not list(cache.glob(".*"))


def test_a_damaged_cache_is_decoded_again(folder, cache):
    digest = loaded(folder).train.digest()
    (file,) = cache.glob("*.npy")
    for content in (file.read_bytes()[:-100], b"", b"something else"):
        file.write_bytes(content)
        assert loaded(folder).train.digest() == digest


def test_large_sets_stay_in_the_file(folder, monkeypatch):
    small = loaded(folder)
    monkeypatch.setattr(data, "_IN_MEMORY", 0)
    large = loaded(folder)
    assert large.train.order is not None
    assert small.train.order is None
    for part in ("train", "validation", "test"):
        few, many = getattr(small, part), getattr(large, part)
        assert few.digest() == many.digest()
        for one, other in zip(few.batch(slice(1, 3)), many.batch(slice(1, 3)), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(few.targets(), many.targets())
        index = torch.tensor([1, 0])
        assert torch.equal(few.rows(index).images, many.rows(index).images)


def test_resize_crop_and_channels(folder):
    assert loaded(folder, resize=[4, 8]).shape == (3, 4, 8)
    assert loaded(folder, resize=12).shape == (3, 12, 18)
    assert loaded(folder, resize=12, crop=10).shape == (3, 10, 10)
    assert loaded(folder, channels=1).shape == (1, *SIZE)
    assert "data.crop: 7 is not allowed" in error_of(folder, crop=7)


def test_the_high_bits_of_16_bit_images_are_kept(tmp_path):
    pixels = {}
    for seed in range(20):
        deep = np.random.default_rng(seed).integers(0, 2**16, SIZE, dtype=np.uint16)
        path = tmp_path / "deep" / ("cat", "dog")[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(deep).save(path)
        pixels[(deep // 256).astype(np.uint8).tobytes()] = seed
    train = loaded(tmp_path / "deep", channels=1).train
    assert all(bytes(image.numpy().tobytes()) in pixels for image in train.images)
    Image.fromarray(np.zeros(SIZE, np.float32)).save(tmp_path / "deep" / "cat" / "real.tiff")
    assert "real.tiff cannot be decoded (its pixels are numbers of 32 bits" in error_of(tmp_path / "deep", channels=1)


def test_hidden_files_and_folders_are_not_images(folder):
    image(folder / ".checkpoints" / "1.png", 0)
    (folder / "cat" / "._0.png").write_bytes(b"of another system")
    assert loaded(folder).names == ("cat", "dog")


def test_a_part_without_images_is_refused(folder, tmp_path):
    (tmp_path / "parts" / "test").mkdir(parents=True)
    folder.rename(tmp_path / "parts" / "train")
    assert "test holds no images in folders of classes" in error_of(tmp_path / "parts")


def test_images_of_torchvision_are_resized(tmp_path):
    section = {"name": "torchvision:FakeData", "size": 20, "image_size": [3, 12, 12], "num_classes": 2}
    dataset = data.load(build(OwnData, {**section, "resize": 8, "crop": 6, "channels": 1}))
    assert dataset.shape == (1, 6, 6)
    assert data.load(build(OwnData, section)).shape == (3, 12, 12)


def test_other_sizes_are_named_with_the_remedy(folder):
    image(folder / "dog" / "wide.png", 5, (6, 20))
    message = error_of(folder)
    assert "wide.png has 6 x 20 pixels" in message
    assert "data.resize" in message
    assert loaded(folder, resize=8, crop=8).shape == (3, 8, 8)


def test_a_truncated_image_is_named_and_skipped_only_on_request(folder, capsys):
    path = folder / "cat" / "00.png"
    path.write_bytes(path.read_bytes()[:60])
    message = error_of(folder)
    assert str(path) in message
    assert "data.skip_corrupt=true" in message
    dataset = loaded(folder, skip_corrupt=True)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 19
    assert str(path) in capsys.readouterr().err
    loaded(folder, skip_corrupt=True)  # from the cache
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "none of 20 images can be decoded" in error_of(folder, skip_corrupt=True)


def test_folders_that_hold_no_classes_are_refused(tmp_path, folder):
    image(tmp_path / "flat" / "1.png", 1)
    assert "a folder for each class" in error_of(tmp_path / "flat")
    assert "is not a folder" in error_of(folder / "cat" / "00.png")
    assert "does not exist; looked for" in error_of(tmp_path / "nowhere")


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLR_CACHE", str(tmp_path / "file" / "cache"))
    assert "GLR_CACHE names the cache" in error_of(folder)


def test_tiny_imagenet_in_its_layout(tmp_path, monkeypatch):
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n02", "n01"):
        for number in range(5):
            image(root / "train" / name / "images" / f"{name}_{number}.png", number)
        image(root / "val" / "images" / f"val_{name}.png", 7)
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "val" / "val_annotations.txt").write_text("val_n02.png\tn02\t0\t0\t1\t1\nval_n01.png\tn01\t0\t0\t1\t1\n")
    monkeypatch.setenv("GLR_DATA", str(tmp_path))
    dataset = data.load(Data(name="tiny_imagenet"))
    assert dataset.names == ("n01", "n02")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (9, 1, 2)
    assert dataset.test.labels.tolist() == [1, 0]
    (root / "val" / "val_annotations.txt").write_text("val_n02.png\tn99\n")
    with pytest.raises(ConfigError, match=r"val_annotations\.txt is missing or damaged"):
        data.load(Data(name="tiny_imagenet"))
    with pytest.raises(ConfigError, match="tiny_imagenet is not in"):
        data.load(Data(name="tiny_imagenet", root=str(root)))


@pytest.mark.long
def test_the_real_part_of_tiny_imagenet(glr_data):
    if not (glr_data / "tiny-imagenet-200").is_dir():
        pytest.skip("needs tiny-imagenet-200 in GLR_DATA")
    dataset = data.load(Data(name="tiny_imagenet"))
    assert (dataset.shape, dataset.classes) == ((3, 64, 64), 200)
    assert len(dataset.test) >= 2000
    assert not dataset.notes
