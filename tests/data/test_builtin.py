"""Data sets: their sizes, splits that only the split's seed changes, and files that are missing or damaged."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glr_dist import data
from glr_dist.config import Data
from glr_dist.errors import ConfigError

FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def rows(split: data.Split) -> list[bytes]:
    """Each example's pixels and label as bytes: what makes it one of a kind."""
    flat = torch.cat([split.images.flatten(1).long(), split.labels[:, None]], 1)
    return [row.numpy().tobytes() for row in flat]


def error_of(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        data.load(Data(**values))
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load(Data())


def test_digits_have_the_sizes_that_the_shares_give(digits):
    assert (len(digits.test), len(digits.validation), len(digits.train)) == (359, 144, 1294)  # of 1,797
    assert digits.shape == (1, 8, 8)
    assert digits.classes == 10
    other = data.load(Data(test=0.5, validation=0.25))
    assert (len(other.test), len(other.validation), len(other.train)) == (898, 225, 674)


def test_a_small_training_part_does_not_lose_classes():
    small = data.load(Data(test=0.5, validation=0.997))
    assert len(small.train) == 3
    assert small.classes == 10


def test_the_three_parts_share_no_example_and_lose_none(digits):
    from sklearn.datasets import load_digits

    parts = rows(digits.train) + rows(digits.validation) + rows(digits.test)
    whole = data.Split(torch.from_numpy(load_digits().images).byte(), torch.from_numpy(load_digits().target), 16)
    assert sorted(parts) == sorted(rows(whole))


def test_every_part_has_every_class(digits):
    for part in (digits.train, digits.validation, digits.test):
        assert part.labels.unique().tolist() == list(range(10))


def test_the_split_depends_on_its_seed_alone(digits):
    torch.manual_seed(1)
    assert torch.equal(data.load(Data()).train.images, digits.train.images)
    other = data.load(Data(split_seed=1))
    assert not torch.equal(other.test.images, digits.test.images)
    assert sorted(rows(other.train) + rows(other.validation) + rows(other.test)) == sorted(
        rows(digits.train) + rows(digits.validation) + rows(digits.test)
    )


def test_another_share_for_validation_leaves_the_test_set_alone(digits):
    other = data.load(Data(validation=0.3))
    assert torch.equal(other.test.images, digits.test.images)
    assert len(other.validation) == 431


@pytest.mark.parametrize("seed", [2**32, 2**63 - 1])
def test_a_large_split_seed_gives_a_split_of_its_own(digits, seed):
    assert not torch.equal(data.load(Data(split_seed=seed)).test.images, digits.test.images)


def test_a_split_seed_too_large_for_a_key_is_refused():
    with pytest.raises(ValueError, match="split_seed"):
        Data(split_seed=2**63)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ({"test": 0.0002}, "data.test: 0.0002 of 1797 examples leaves no test example"),
        ({"test": 0.9999}, "data.test: 0.9999 of 1797 examples leaves no training example"),
        ({"validation": 0.0001}, "data.validation: 0.0001 of 1438 examples leaves no validation example"),
        ({"test": 0.999, "validation": 0.1}, "data.validation: 0.1 of 2 examples leaves no validation example"),
    ],
)
def test_a_share_that_leaves_a_part_empty_is_an_error(share, said):
    assert error_of(**share) == said


@pytest.mark.parametrize("root", ["~nobody-of-this-name", "~nobody-of-this-name/data", "\0", "a\0b"])
def test_a_folder_that_cannot_be_named_is_an_error(root):
    for name in FOLDERS:
        assert error_of(name=name, root=root).startswith("data.root: ")


def test_a_validation_share_that_leaves_no_training_example_is_a_error_of():
    assert "data.validation: 0.9999 of 1438 examples leaves no training example" in error_of(validation=0.9999)


# ---------------------------------------------------------------- batches


def test_a_batch_lies_in_the_unit_interval_with_its_labels(digits):
    index = torch.tensor([5, 3, 3])
    x, y = digits.train.batch(index)
    assert x.shape == (3, 1, 8, 8)
    assert x.dtype == torch.float32
    assert torch.equal(x * 16, digits.train.images[index].float())
    assert torch.equal(y, digits.train.labels[index])
    whole, _ = digits.train.batch(slice(None))
    assert (whole.min(), whole.max()) == (0, 1)
    assert digits.train.batch(slice(0, 2), torch.float64)[0].dtype == torch.float64


# ---------------------------------------------------------------- MNIST and Fashion-MNIST


@pytest.mark.parametrize("name", FOLDERS)
def test_the_real_sets_have_their_sizes_ranges_and_classes(glr_data, name):
    dataset = data.load(Data(name=name, root=str(glr_data), download=False))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (54_000, 6_000, 10_000)
    assert dataset.shape == (1, 28, 28)
    assert dataset.classes == 10
    assert (dataset.train.images.min(), dataset.train.images.max(), dataset.train.top) == (0, 255, 255)
    assert dataset.test.labels.bincount().tolist() == (
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009] if name == "mnist" else [1000] * 10
    )


@pytest.mark.slow
def test_the_real_sets_are_found_by_the_environment_variable(glr_data, monkeypatch):
    monkeypatch.setenv("GLR_DATA", str(glr_data))
    assert data.root_of(Data()) == glr_data.resolve()
    first = data.load(Data(name="mnist", download=False))
    again = data.load(Data(name="mnist", download=False, root=str(glr_data), split_seed=0))
    assert torch.equal(first.validation.labels, again.validation.labels)
    assert torch.equal(first.validation.images[:50], again.validation.images[:50])


def test_the_root_is_named_before_the_environment_and_that_before_the_default(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLR_DATA", "/from/environment")
    assert data.root_of(Data(root="/from/config")) == Path("/from/config")
    assert data.root_of(Data()) == Path("/from/environment")
    monkeypatch.delenv("GLR_DATA")
    assert data.root_of(Data()) == tmp_path.resolve() / "data"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.root_of(Data(root="~/sets")) == tmp_path.resolve() / "sets"


# ---------------------------------------------------------------- missing and damaged


@pytest.mark.parametrize("name", FOLDERS)
def test_missing_data_is_an_error_where_it_may_not_be_fetched(tmp_path, name):
    message = error_of(name=name, root=str(tmp_path), download=False)
    assert f"{name} is not in {tmp_path}" in message
    assert "GLR_DATA" in message
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_fetched_is_a_error_of(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    def offline(self: MNIST) -> None:
        raise RuntimeError("Error downloading\ntrain-images: <urlopen error>")

    monkeypatch.setattr(MNIST, "download", offline)
    message = error_of(name="mnist", root=str(tmp_path))
    assert "cannot be downloaded (Error downloading train-images" in message


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    """A file in the idx format: type byte 8 (uint8), the number of dimensions, the dimensions, the values."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content


@pytest.fixture(scope="module")
def blank_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An MNIST of the right shapes, all pixels 0."""
    folder = tmp_path_factory.mktemp("blank")
    for part, size in (("train", 60_000), ("t10k", 10_000)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx((size, 28, 28), bytes(size * 784)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx((size,), bytes(i % 10 for i in range(size))))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def blank(blank_files: Path, tmp_path: Path) -> Path:
    """A folder of data that links to the blank files: a test may put another file in the place of a link."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in FILES:
        (folder / file).symlink_to(blank_files / file)
    return tmp_path


def put(path: Path, content: bytes) -> None:
    """Replaces a link, not what it links to."""
    path.unlink()
    path.write_bytes(content)


def test_the_blank_set_is_a_right_one(blank):
    # What the damaged ones below differ from.
    assert len(data.load(Data(name="mnist", root=str(blank), download=False)).train) == 54_000


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "truncated in its header": lambda content: content[:6],
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 50,
    "text": lambda content: b"<html>404 not here</html>\n" * 100,
    "still compressed": lambda content: gzip.compress(content[:100_000]),
    "too long": lambda content: content + b"\0" * 784,
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_error_of(blank, damage, file):
    path = blank / "MNIST" / "raw" / file
    put(path, DAMAGES[damage](path.read_bytes()))
    message = error_of(name="mnist", root=str(blank), download=False)
    assert "damaged" in message
    assert str(path.parent) in message
    assert ("train" if file.startswith("train") else "test") in message


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train-images-idx3-ubyte", idx((59_999, 28, 28), bytes(59_999 * 784))),
        ("train-images-idx3-ubyte", idx((60_000, 28, 27), bytes(60_000 * 28 * 27))),
        ("t10k-labels-idx1-ubyte", idx((9_999,), bytes(9_999))),
        ("t10k-labels-idx1-ubyte", idx((10_000,), bytes([10]) + bytes(9_999))),
        ("train-labels-idx1-ubyte", idx((0,), b"")),
    ],
    ids=["an image too few", "images too narrow", "a label too few", "a label above 9", "no label"],
)
def test_a_whole_file_of_wrong_content_is_a_error_of(blank, file, content):
    put(blank / "MNIST" / "raw" / file, content)
    assert "damaged" in error_of(name="mnist", root=str(blank), download=False)


def test_a_file_that_is_missing_is_not_called_damaged(blank):
    (blank / "MNIST" / "raw" / FILES[2]).unlink()
    assert "mnist is not in" in error_of(name="mnist", root=str(blank), download=False)


def test_a_real_file_cut_short_is_a_error_of(glr_data, tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for file in FILES:
        (folder / file).symlink_to(glr_data.resolve() / "FashionMNIST" / "raw" / file)
    put(folder / FILES[0], (folder / FILES[0]).read_bytes()[:1_000_000])
    assert "damaged" in error_of(name="fashion_mnist", root=str(tmp_path), download=False)
