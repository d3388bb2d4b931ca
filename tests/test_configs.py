"""Every configuration that the repository offers is a right one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glr_dist import config
from glr_dist.glr import GLR
from glr_dist.registry import MODELS
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


def test_every_network_of_the_zoo_has_a_configuration():
    assert set(MODELS) == {config.load_config(path).model.name for path in FILES} & set(MODELS)


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((FOLDER / "zoo").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_networks_of_the_zoo_make_a_step(path):
    """On random images, with few copies."""
    few = ["estimator.block_elements=auto", "estimator.items_per_site=4"]
    loaded = config.load_config(path, few)
    if loaded.estimator.copies != "auto":
        loaded = config.load_config(path, [*few, "estimator.copies=4"])
    shape = (1, 8, 8) if loaded.data.name == "digits" else (1, 28, 28)
    stream = torch.Generator().manual_seed(0)
    model = MODELS[loaded.model.name](loaded.model, torch.Size(shape), 10, stream)
    net = GLR(model, 0.3, loaded.estimator)
    assert net.estimate(torch.rand(6, *shape, generator=stream), torch.arange(6)).isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())
