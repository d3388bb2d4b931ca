"""Tables: .csv and .parquet files, one example in a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from glr_dist.config import Data
from glr_dist.data.arrays import splits
from glr_dist.data.split import Split
from glr_dist.errors import ConfigError
from glr_dist.text import hint, one_line


def table(data: Data) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The table `data.path`: numeric columns are the inputs [N, columns], `data.target` names what is predicted.

    A column of text or integers is predicted as classes, one of floats as a value; several columns are several values.
    Columns of text among the inputs are refused.

    Raises:
        ConfigError: the file is damaged, a column is missing or not a number, or a value is missing.
    """
    assert data.path is not None and data.target is not None
    path = Path(data.path)
    frame = read_table(path, "data.path: ")
    columns = [data.target] if isinstance(data.target, str) else list(data.target)
    for column in columns:
        if column not in frame.columns:
            raise ConfigError(f"data.target: {column!r} is not a column; {hint(column, map(str, frame.columns))}")
    inputs = frame.drop(columns=columns)
    if inputs.shape[1] == 0:
        raise ConfigError(f"data.path: {path} has no column beside the target")
    for column in [*inputs.columns, *(columns if len(columns) > 1 else ())]:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            example = next(iter(frame[column].dropna()), None)
            raise ConfigError(
                f"data.path: column {column!r} of {path} is not numeric (it holds {example!r}); encode it as numbers "
                "first"
            )
    gaps = frame.isna() | np.isinf(frame.select_dtypes("number")).reindex(columns=frame.columns, fill_value=False)
    if gaps.to_numpy().any():
        row, column = np.argwhere(gaps.to_numpy())[0]
        raise ConfigError(
            f"data.path: {path} has a missing or infinite value in column {frame.columns[column]!r}, row {row + 1}; "
            "fill it or leave the row out"
        )
    target = frame[columns[0]] if len(columns) == 1 else frame[columns]
    if len(columns) == 1 and pd.api.types.is_integer_dtype(target):
        y = target.to_numpy(np.int64)
    elif len(columns) == 1 and not pd.api.types.is_float_dtype(target):
        y = target.astype(str).to_numpy(object)
    else:
        y = target.to_numpy(np.float32).reshape(len(frame), len(columns))
    return splits({"train": (inputs.to_numpy(np.float64), y)}, f"data.path: {path}")


def read_table(path: Path, where: str = "") -> pd.DataFrame:
    """Returns the table in a .csv or .parquet file.

    Args:
        path: the file.
        where: begins error messages.

    Raises:
        ConfigError: it is damaged or empty, or a column has no name.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:  # pandas' parsers raise many kinds
        raise ConfigError(f"{where}{path} cannot be read as a table ({one_line(error)})") from None
    if len(frame) == 0:
        raise ConfigError(f"{where}{path} has no row")
    for number, column in enumerate(frame.columns, 1):
        if str(column).startswith("Unnamed: "):
            raise ConfigError(
                f"{where}column {number} of {path} has no name (pandas writes the index so); name or remove it"
            )
    return frame
