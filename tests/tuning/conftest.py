"""Tiny searches: a trial takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from glr_dist.tuning.search_config import Search, load_search

TINY = {
    "model": {"hidden": [8], "activation": "threshold"},
    "noise": {"scale": 0.5},
    "estimator": {"copies": 8},
    "training": {"epochs": 2, "batch_size": 512, "optimizer": {"name": "Adam", "lr": 0.02}},
    "execution": {"device": "cpu"},
    "tune": {"space": {"noise.scale": {"loguniform": [0.05, 3]}}, "trials": 4},
}


@pytest.fixture
def tiny_search_yaml(tmp_path: Path) -> Path:
    """The file of a tiny search."""
    path = tmp_path / "tiny-search.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def tiny_search(tiny_search_yaml: Path) -> Callable[..., Search]:
    """`tiny_search("tune.trials=2", …)`: a tiny search with overrides."""
    return lambda *overrides: load_search(tiny_search_yaml, overrides)
