"""Warm start: a run starts from the parameters of another run, or from a state dict, which `model.weights` names.

The optimizer starts afresh. Learned noise scales are carried over if both runs learn them with the same shape; all
others start at `noise.scale`. The digest of the parameters goes into the run's configuration, and the parameters into
its first checkpoint, so that a resumed run does not read the other run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from glr_dist.config import AnyModel, Config
from glr_dist.errors import CheckpointError, ConfigError
from glr_dist.glr import GLR
from glr_dist.nn.normalize import Normalize
from glr_dist.runs import RunFolder
from glr_dist.text import one_line
from glr_dist.training import checkpoint

_MODEL, _SCALES = "model.", "log_scales."  # prefixes of a network's state
_NORMALIZE = ("model.normalize.mean", "model.normalize.std")


@dataclass(frozen=True)
class Weights:
    """The parameters of another run.

    Attributes:
        path: its checkpoint.
        state: the state of its network, by name.
        learned: True if it learned its noise scales.
        digest: SHA-256 of the state, the `params_sha256` of the other run if the checkpoint is its last.
    """

    path: Path
    state: Mapping[str, Tensor]
    learned: bool
    digest: str


def weights_of(model: AnyModel, device: torch.device | str = "cpu") -> Weights | None:
    """Reads the parameters that `model.weights` names; returns None if it is not set.

    Raises:
        ConfigError: the folder does not hold a run, or the digest of the parameters is not `weights_sha256`.
        CheckpointError: the checkpoint is missing or damaged.
    """
    if model.weights is None:
        return None
    path = Path(model.weights).expanduser().absolute()
    try:
        if path.is_dir():
            RunFolder(path).config()
            path, state = checkpoint.load_newest(RunFolder(path).checkpoints, device)
        elif (tensors := state_dict_of(path, device)) is not None:
            network = {f"{_MODEL}{name}": tensor for name, tensor in tensors.items()}
            return _checked(Weights(path, network, False, checkpoint.digest(network)), model)
        else:
            state = checkpoint.load(path, device)
        network, groups = dict(state["network"]), state["optimizer"]["param_groups"]
        digest = checkpoint.digest(network)
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f"model.weights: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"model.weights: {path}: is not the checkpoint of a run") from None
    return _checked(Weights(path, network, len(groups) > 1, digest), model)  # learned scales are the second group


def _checked(weights: Weights, model: AnyModel) -> Weights:
    if model.weights_sha256 not in (None, weights.digest):
        raise ConfigError(
            f"model.weights_sha256: '{model.weights_sha256}' is not allowed: the digest of {weights.path} is "
            f"'{weights.digest}'"
        )
    return weights


def state_dict_of(path: Path, device: torch.device | str) -> dict[str, Tensor] | None:
    """Returns the tensors of a .safetensors file, or of a state dict that torch saved; None for a checkpoint of a run.

    Raises:
        CheckpointError: the file is missing or damaged.
        ConfigError: safetensors is not installed.
    """
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise ConfigError("model.weights: .safetensors needs safetensors; pip install 'glr_dist[export]'") from None
        try:
            return dict(load_file(path, device=str(device)))
        except Exception as error:  # safetensors raises an error of its own
            raise CheckpointError(f"{path}: cannot be read ({one_line(error)})") from None
    try:
        loaded = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # `checkpoint.load` says what is wrong
        return None
    if isinstance(loaded, Mapping) and loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        return dict(loaded)
    return None


def begin_with(net: GLR, weights: Weights) -> list[str]:
    """Loads the parameters into a network.

    Returns:
        The keys of the noise scales that were carried over.

    Raises:
        ConfigError: the parameters do not fit; the message names the first one that differs.
    """
    own, given = net.state_dict(), weights.state
    if isinstance(net.model, nn.Sequential) and isinstance(net.model[0], Normalize) and _NORMALIZE[0] not in given:
        # The state of the network alone, without the normalisation that this run puts before it.
        inner = "model." if isinstance(dict(net.model.named_children()).get("model"), nn.Module) else ""
        given = {f"{_MODEL}{inner}{name.removeprefix(_MODEL)}": value for name, value in given.items()}
        given |= {name: own[name] for name in _NORMALIZE}
    _check_fit(_part(own, _MODEL), _part(given, _MODEL), weights.path)
    carried = [
        name
        for name, scale in net.named_parameters()
        if name.startswith(_SCALES) and weights.learned and scale.requires_grad and name in given
        if given[name].shape == scale.shape
    ]
    loaded = {name: given[name] for name in own if name.startswith(_MODEL) or name in carried}
    net.load_state_dict({**own, **loaded})
    return carried


def adopted(before: Config, now: Config, folder: Path) -> Config:
    """Returns the configuration that resumes a run, with the recorded digest of the run's initial weights.

    Args:
        before: the configuration of the run so far.
        now: the configuration that resumes it.
        folder: the run's folder.

    Raises:
        ConfigError: the two name different weights.
    """
    if now.model.weights is None or now.model.weights_sha256 is not None or before.model.weights is None:
        return now
    if before.model.weights != located(now).model.weights:
        raise ConfigError(
            f"model.weights: the run in {folder} began with {before.model.weights!r}, not "
            f"{located(now).model.weights!r}; leave out --resume to begin another run"
        )
    return pinned(now, before.model.weights_sha256)


def located(config: Config) -> Config:
    """Returns the configuration with the absolute path of its weights."""
    if config.model.weights is None:
        return config
    path = str(Path(config.model.weights).expanduser().absolute())
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": path})})


def pinned(config: Config, digest: str | None) -> Config:
    """Returns the configuration with the absolute path of its weights, and their digest."""
    model = located(config).model.model_copy(update={"weights_sha256": digest})
    return config.model_copy(update={"model": model})


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): tuple(value.shape) for name, value in state.items() if name.startswith(prefix)}


def _check_fit(own: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], path: Path) -> None:
    for name in [*own, *(name for name in given if name not in own)]:
        if own.get(name) != given.get(name):
            there, here = (
                f"has shape {shapes[name]}" if name in shapes else "does not exist" for shapes in (given, own)
            )
            raise ConfigError(f"model.weights: {path} does not fit: '{name}' {there} there and {here} in this network")
