"""Checks that every edge of a search space gives a network and an optimizer, before any trial starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glr_dist import data
from glr_dist.build import device_of, loss_of, network_of, optimizer_of, schedule_of
from glr_dist.config import Config
from glr_dist.data import Dataset
from glr_dist.errors import ConfigError, UserError
from glr_dist.glr import GLR
from glr_dist.sites import by_site
from glr_dist.text import one_line, shown
from glr_dist.training.warm_start import begin_with, weights_of
from glr_dist.tuning.points import BY_SITE, edge_points, field_parts
from glr_dist.tuning.search_config import Search


def check_networks(search: Search) -> None:
    """Builds the network and the optimizer at every edge of the space.

    Raises:
        ConfigError: an edge is impossible, or a site pattern has no effect.
    """
    loaded: dict[str, Dataset] = {}
    for field, value, point in edge_points(search.tune.space):
        config = search.config_at(point)
        if field == "model.weights" and not Path(str(config.model.weights)).is_absolute():
            reason = "trials have another working directory; give an absolute path"
            raise ConfigError(f"tune.space.{field}: {shown(value)} is not possible: {reason}")
        name = config.data.model_dump_json()
        if name not in loaded:
            loaded = {name: data.load(config.data, config.code)}  # one data set in memory at a time
        try:
            net = _network(config, loaded[name])
        except UserError as error:
            raise ConfigError(f"tune.space.{field}: {shown(value)} is not possible ({one_line(error)})") from None
        section, key, pattern = field_parts(field)
        if pattern and f"{section}.{key}" in BY_SITE:
            _check_pattern(field, pattern, getattr(getattr(config, section), key), net)


def _network(config: Config, dataset: Dataset) -> GLR:
    device = device_of(config.execution)
    net = network_of(config, dataset, device)
    if (weights := weights_of(config.model, device)) is not None:
        begin_with(net, weights)
    schedule_of(config.training, optimizer_of(config.training, net), 1)
    net.bind(*dataset.train.to(device).batch(slice(0, 2)), loss_of(config))
    return net


def _check_pattern(field: str, pattern: str, values: dict[str, object], net: GLR) -> None:
    patterns: Any = {known: known for known in values}
    if pattern not in by_site(patterns, [site.name for site in net.network.sites], field).values():
        raise ConfigError(f"tune.space.{field}: has no effect, an earlier pattern matches its sites; put it first")
