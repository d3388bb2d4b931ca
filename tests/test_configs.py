"""Every configuration that the repository offers is a right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from glr_dist import config

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))


def test_there_are_configurations():
    assert FOLDER / "digits.yaml" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_the_configuration_loads_and_round_trips(path, tmp_path):
    loaded = config.load(path)
    again = tmp_path / "again.yaml"
    again.write_text(config.dump(loaded))
    assert config.load(again) == loaded
