"""Every configuration that the repository offers is a right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from glr_dist import config
from glr_dist.tuning.search_config import load_search

FOLDER = Path(__file__).parents[1] / "configs"
SEARCHES = sorted((FOLDER / "tune").glob("*.yaml"))
FILES = sorted(set(FOLDER.rglob("*.yaml")) - set(SEARCHES))


def test_there_are_configurations():
    assert FOLDER / "digits.yaml" in FILES
    assert FOLDER / "tune" / "digits_noise_scale.yaml" in SEARCHES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_the_configuration_loads_and_round_trips(path, tmp_path):
    loaded = config.load_config(path)
    again = tmp_path / "again.yaml"
    again.write_text(config.dump_config(loaded))
    assert config.load_config(again) == loaded


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.name)
def test_the_search_loads_and_what_is_kept_of_it_is_the_same_search(path, tmp_path):
    loaded = load_search(path)
    assert loaded.tune.number >= 12
    (tmp_path / "again.yaml").write_text(loaded.dump())
    loaded.check_same(tmp_path / "again.yaml")
