"""Loads configurations that a test writes to a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from glr_dist.config import Config, load_config
from glr_dist.errors import ConfigError


def loaded(tmp_path: Path, text: str = "", *overrides: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def error_of(tmp_path: Path, text: str = "", *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message
