"""Arrays and tables of the user's: their types and targets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from glr_dist import data
from glr_dist.config import Data, build
from glr_dist.data.arrays import splits
from glr_dist.data.inputs import inputs_of
from glr_dist.errors import ConfigError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(30, 4))


def loaded(path: Path, name: str = "arrays", **settings: object) -> data.Dataset:
    return data.load(build(Data, {"name": name, "path": str(path), **settings}))


def targets_of(y: object, x: object = X) -> tuple[torch.Tensor, tuple[str, ...]]:
    parts, names = splits({"train": (x, y)}, "set")
    return parts["train"].labels, names


def test_targets_keep_their_kind():
    numbers = RANDOM.integers(0, 3, 30)
    assert targets_of(numbers)[0].tolist() == numbers.tolist()
    assert targets_of(numbers.astype(np.uint8))[0].dtype is torch.int64
    names = np.array(["b", "a", "c"])[numbers]
    y, known = targets_of(names)
    assert known == ("a", "b", "c")
    assert [known[index] for index in y] == names.tolist()
    gaps = np.array([7, 100, -3])[numbers]
    y, known = targets_of(gaps)
    assert [int(known[index]) for index in y] == gaps.tolist()
    assert targets_of(X[:, :1])[0].dtype is torch.float32
    assert targets_of(X > 0)[0].dtype is torch.float32  # several labels
    tokens = RANDOM.integers(0, 5, (30, 7))
    assert torch.equal(targets_of(tokens)[0], torch.from_numpy(tokens))


def test_inputs_keep_their_kind():
    def input_of(x: object) -> torch.Tensor:
        return splits({"train": (x, np.zeros(len(x)))}, "set")[0]["train"].images

    assert input_of(X).dtype is torch.float32
    assert input_of(RANDOM.integers(0, 9, (30, 5))).dtype is torch.int64  # token ids
    grey = RANDOM.integers(0, 256, (30, 5, 6), dtype=np.uint8)
    assert input_of(grey).shape == (30, 1, 5, 6)
    last = RANDOM.integers(0, 256, (30, 5, 6, 3), dtype=np.uint8)
    assert torch.equal(input_of(last), torch.from_numpy(last).permute(0, 3, 1, 2))
    first = RANDOM.integers(0, 256, (30, 3, 5, 6), dtype=np.uint8)
    assert torch.equal(input_of(first), torch.from_numpy(first))
    part = splits({"train": (grey, np.zeros(30))}, "set")[0]["train"]
    torch.testing.assert_close(part.batch(slice(2))[0][:, 0], torch.from_numpy(grey[:2]) / 255)


def test_a_tuple_of_labels_is_one_target():
    made, names = splits({"train": (X, tuple("ab" * 15))}, "set")
    assert names == ("a", "b")
    assert made["train"].labels.tolist() == [0, 1] * 15


def test_several_inputs_of_a_network():
    parts, _ = splits({"train": ({"a": X, "b": X[:, 0]}, np.zeros(30))}, "set")
    x, y = parts["train"].batch(torch.tensor([3, 1]))
    torch.testing.assert_close(x["a"], torch.from_numpy(X[[3, 1]]).float())
    assert (x["b"].shape, y.shape) == ((2,), (2, 1))


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_a_file_of_arrays(tmp_path, kind):
    y = RANDOM.integers(0, 3, 30)
    parts = {"x_train": X, "y_train": y, "x_val": X[:4], "y_val": y[:4]}
    path = tmp_path / f"set.{kind}"
    if kind == "npz":
        np.savez(path, **parts)
    else:
        torch.save({name: torch.from_numpy(value) for name, value in parts.items()}, path)
    dataset = loaded(path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (24, 4, 6)
    assert dataset.classes == 3


def test_inputs_without_targets_are_refused(tmp_path):
    np.savez(tmp_path / "set.npz", x_train=X, y_train=np.arange(30), x_test=X)
    with pytest.raises(ConfigError, match="holds x_test without y_test"):
        loaded(tmp_path / "set.npz")


def predicted(tmp_path: Path, values: object, trained: np.ndarray) -> torch.Tensor:
    """The inputs of a file, for a network that was trained on others."""
    np.save(tmp_path / "x.npy", values)
    train = splits({"train": (trained, np.arange(len(trained)))}, "set")[0]["train"]
    _, x = inputs_of([tmp_path / "x.npy"], build(Data, {"name": "digits"}), train, None)
    assert isinstance(x, torch.Tensor)
    return x


def test_inputs_to_predict_have_the_units_of_training(tmp_path):
    pixels = RANDOM.integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
    expected = torch.from_numpy(pixels).float() / 255
    for values in (pixels, pixels.astype(np.int64), pixels / np.float32(255)):
        assert torch.equal(predicted(tmp_path, values, pixels), expected)
    with pytest.raises(ConfigError, match="the pixels reach from 0 to 255; integers from 0 to 255 are allowed"):
        predicted(tmp_path, pixels.astype(np.float32), pixels)
    small = np.arange(120).reshape(30, 4).astype(np.uint8)
    assert torch.equal(predicted(tmp_path, small, X), torch.from_numpy(small).float())  # features, not pixels
    tokens = np.arange(120).reshape(30, 4)
    assert predicted(tmp_path, tokens, tokens).dtype is torch.int64
    with pytest.raises(ConfigError, match="holds real numbers; the network takes integers"):
        predicted(tmp_path, X, tokens)


def test_columns_to_predict_are_found_by_name(tmp_path):
    table = frame()[["a", "b", "c", "d", "kind"]]
    table.to_csv(tmp_path / "set.csv", index=False)
    section = build(Data, {"name": "table", "path": str(tmp_path / "set.csv"), "target": "kind"})
    train = data.load(section).train

    def of(inputs: pd.DataFrame) -> torch.Tensor:
        inputs.to_csv(tmp_path / "new.csv", index=False)
        x = inputs_of([tmp_path / "new.csv"], section, train, None)[1]
        assert isinstance(x, torch.Tensor)
        return x

    expected = torch.from_numpy(table[list("abcd")].to_numpy(np.float32, copy=True))
    assert torch.allclose(of(table[["d", "b", "kind", "a", "c"]]), expected)
    with pytest.raises(ConfigError, match="lacks the column 'c'; the network takes a, b, c, d"):
        of(table[list("abd")])
    with pytest.raises(ConfigError, match="has the column 'e'"):
        of(table.assign(e=1))


def test_a_file_with_code_is_not_run(tmp_path):
    path = tmp_path / "set.pt"
    torch.save({"x": Path("anything")}, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        loaded(path)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object), y=np.zeros(1))
    with pytest.raises(ConfigError, match="cannot be read"):
        loaded(tmp_path / "objects.npz")


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"train": X}, r"the part 'train' is 'ndarray'; it must be \(inputs, targets\)"),
        ({"train": (X, np.zeros(29))}, "every tensor must hold the same number of examples"),
        ({"train": (np.where(X > 2, np.inf, X), np.zeros(30))}, "the inputs of train are not finite at example"),
        ({"train": (X, np.full(30, np.nan))}, "the targets of train are not finite at example 0"),
        ({"train": (X[:0], np.zeros(0))}, "the part 'train' is empty"),
        (
            {"train": (X, np.zeros(30)), "test": (X[:, :3], np.zeros(30))},
            r"of test has type float32 and shape \[3\], one of train type float32 and shape \[4\]",
        ),
        ({"train": (np.array([None] * 30), np.zeros(30))}, "cannot be a tensor"),
        ({"train": (np.float64(3), np.zeros(30))}, "are one number"),
        ({"train": (X * 1j, np.zeros(30))}, "the inputs of train are complex numbers"),
        ({"train": (X, np.where(X[:, 0] > 0, "a", None))}, r"the targets of train are missing at example \d+ \(None\)"),
        ({"train": (X, np.array([["a", "b"]] * 30))}, r"are text of shape \[30, 2\]"),
        ({"train": (X, np.array([*[0, 1] * 14, 2, -100]))}, "the target of example 29 of train is -100"),
        ({"train": (X, ["a", "b"] * 15), "test": (X, [0, 1] * 15)}, "targets of train are text, those of test are not"),
        ({"train": (X, [0.5] * 30), "test": (X, [0] * 30)}, "a target of test has type int64"),
        ({"train": (X, [0] * 30), "test": (X.astype(np.uint8), [0] * 30)}, "an input of test has type uint8"),
        (
            {"train": ({"a": X, "b": X}, [0] * 30), "test": ({"a": X, "c": X}, [0] * 30)},
            "'a': .* and 'c': .*, one of train 'a': .* and 'b'",
        ),
    ],
)
def test_wrong_arrays_are_refused(parts, reason):
    with pytest.raises(ConfigError, match=reason):
        splits(parts, "set")


# ---------------------------------------------------------------- tables


def frame() -> pd.DataFrame:
    table = pd.DataFrame(X, columns=list("abcd"))
    return table.assign(kind=np.where(X[:, 0] > 0, "yes", "no"), count=RANDOM.integers(0, 3, 30), value=X.sum(1))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_predicts_a_column(tmp_path, kind):
    path, table = tmp_path / f"set.{kind}", frame()[["a", "b", "c", "d", "kind"]]
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    dataset = loaded(path, "table", target="kind")
    assert (dataset.names, dataset.shape, dataset.of_classes) == (("no", "yes"), (4,), True)
    x, y = dataset.train.batch(slice(None))
    assert torch.equal(y == 1, x[:, 0] > 0)


def test_columns_of_integers_are_classes_and_of_floats_values(tmp_path):
    path = tmp_path / "set.csv"
    frame().drop(columns="kind").to_csv(path, index=False)
    assert loaded(path, "table", target="count").of_classes
    values = loaded(path, "table", target="value")
    assert not values.of_classes
    assert values.train.labels.shape[1:] == (1,)
    assert loaded(path, "table", target=["value", "count"]).classes == 2


def test_wrong_tables_are_refused(tmp_path):
    path = tmp_path / "set.csv"
    frame().to_csv(path, index=False)

    def refused(**settings: object) -> str:
        with pytest.raises(ConfigError) as caught:
            loaded(path, "table", **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "'vaule' is not a column; did you mean 'value'?" in refused(target="vaule")
    assert "column 'kind'" in refused(target="count")
    table = frame().drop(columns="kind")
    table.loc[4, "b"] = np.nan
    table.to_csv(path, index=False)
    assert "missing or infinite value in column 'b', row 5" in refused(target="count")
    frame().to_csv(path)
    assert "column 1 of" in refused(target="kind")
    frame().assign(a=10**17 + np.arange(30)).to_csv(path, index=False)
    assert "differ in column 1, counted from 1, by less than float32 can hold" in refused(target="kind")
    frame().iloc[:0].to_csv(path, index=False)
    assert "has no row" in refused(target="kind")
    frame().to_csv(path, index=False)
    assert "column 'kind'" in refused(target=["kind", "value"])
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a table" in refused(target="count")
    path.write_text("count\n1\n2\n")
    assert "no column beside the target" in refused(target="count")
