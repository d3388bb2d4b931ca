"""Independent estimates of the gradient of each site, and the reference that they are compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from glr_dist import data
from glr_dist.build import device_of, loss_of, network_of
from glr_dist.config import Config, Estimator, build, per_site
from glr_dist.errors import ConfigError, NoGradientError
from glr_dist.estimators.head import EXPECTED
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.glr import GLR
from glr_dist.losses import Loss
from glr_dist.text import one_line
from glr_dist.training import checkpoint
from glr_dist.training.warm_start import begin_with, weights_of

CHUNKS = 20  # independent parts of the reference; their spread gives its error
# The step keys the noise: reference, draws and training use disjoint steps.
_REFERENCE_STEP, _DRAW_STEP = 2**40, 2**41
_REFERENCE_COPIES = 100  # K of the reference 'conditional' if that of the configuration is not a number


class Networks:
    """Networks of a configuration with the same weights, and the batch that all estimates use.

    Args:
        config: the configuration.
        weights: a checkpoint to measure at; by default the weights that training begins with.

    Raises:
        ConfigError: the device, the data or the weights are missing.
        CheckpointError: the checkpoint is damaged.
    """

    def __init__(self, config: Config, weights: Path | None) -> None:
        keep_freed_memory()
        device = device_of(config.execution)
        self._dataset, self._device, self._path = data.load(config.data, config.code), device, weights
        self._kept = checkpoint.load(weights, device) if weights is not None else None
        self._begun = weights_of(config.model, device) if weights is None else None
        self._x, self._y = self._dataset.train.to(device).batch(slice(0, config.diagnose.batch))
        self._loss = loss_of(config)

    def batch(self, bar: tqdm[Any]) -> Batch:
        """Returns the batch that all estimates use."""
        return Batch(self._x, self._y, self._loss, bar)

    def net(self, config: Config) -> GLR:
        """Returns the network of a configuration, in training mode.

        Raises:
            ConfigError: the checkpoint belongs to another network.
        """
        net = network_of(config, self._dataset, self._device, measure=self._kept is None)
        if self._begun is not None:
            begin_with(net, self._begun)
        if self._kept is not None:
            state = dict(self._kept["network"])
            if config.noise.learn == "none":  # the configuration's scales count, not the checkpoint's
                if config.noise.schedule:
                    net.set_scale(config.noise.scale_after(self._kept["epoch"]))
                state = {key: value for key, value in state.items() if not key.startswith("log_scales.")}
                state |= {key: value for key, value in net.state_dict().items() if key.startswith("log_scales.")}
            try:
                net.load_state_dict(state)
            except RuntimeError as error:
                reason = one_line(error)
                raise ConfigError(f"--checkpoint: {self._path} belongs to another network ({reason})") from None
            net.feedback.load(self._kept.get("feedback", net.feedback.state()))
        return net.train()


@dataclass(frozen=True)
class Batch:
    """Batch and loss that all estimates use, and the progress bar that counts the estimates."""

    x: Tensor
    y: Tensor
    loss: Loss
    bar: tqdm[Any]


def draws_of(net: GLR, batch: Batch, draws: int) -> tuple[dict[str, Tensor], float]:
    """Returns independent estimates by site [R, P], and the milliseconds that one of them takes."""
    started = time.perf_counter()
    estimates = _estimates(net, batch, range(_DRAW_STEP, _DRAW_STEP + draws))
    return estimates, 1000 * (time.perf_counter() - started) / draws


def chunks_of(net: GLR, batch: Batch) -> dict[str, Tensor]:
    """Returns the estimates of a reference by site [C, P]."""
    return _estimates(net, batch, range(_REFERENCE_STEP, _REFERENCE_STEP + CHUNKS))


def _estimates(net: GLR, batch: Batch, steps: Sequence[int]) -> dict[str, Tensor]:
    """Returns independent estimates by site [R, P], the site's P parameters flattened in float64."""
    rows: dict[str, list[Tensor]] = {}
    for step in steps:
        net.step = step
        grads = net.gradients(batch.x, batch.y, batch.loss).grads
        for site in net.network.sites:
            if site.owned:
                row = torch.cat([grads[name].flatten() for name in site.owned]).double()
                rows.setdefault(site.name, []).append(row)
        batch.bar.update()
    return {site: torch.stack(found) for site, found in rows.items()}


def rebuilt(estimator: Estimator, **options: object) -> Estimator:
    """Returns an estimator with other options, without the budget, which they replace.

    Raises:
        ConfigError: the options do not fit together.
    """
    fixed: dict[str, Any] = {"budget": None, "measure_every": Estimator.model_fields["measure_every"].default}
    if estimator.passes == "auto":
        fixed["passes"] = 1
    return build(Estimator, estimator.model_dump() | fixed | options, "estimator.")


def reference_of(config: Config, net_of: Callable[[Config], GLR], batch: Batch) -> tuple[str, dict[str, Tensor]]:
    """Returns the name of the reference estimator and its estimates [C, P] by site.

    Raises:
        ConfigError: no reference estimator gives a gradient of this network.
    """
    chosen = config.diagnose
    estimator = config.estimator.name
    other = "conditional" if estimator != "conditional" else "joint"
    names = ("pathwise", other) if chosen.reference == "auto" else (chosen.reference,)
    per_chunk = max(2, 2 * round(chosen.reference_passes / CHUNKS / 2))
    for name in names:
        copies = config.estimator.copies if config.estimator.copies != "auto" else _REFERENCE_COPIES
        sizes: dict[str, dict[str, Any]] = {
            "pathwise": {"passes": per_chunk},
            "joint": {"copies": per_chunk},
            "conditional": {"copies": copies, "passes": max(1, per_chunk // max(per_site(copies)))},
        }
        options = build(Estimator, {"name": name, "antithetic": config.estimator.antithetic, **sizes[name]})
        if name == "pathwise" and config.noise.law == "none":
            options = config.estimator
        try:
            return name, chunks_of(_integrated(config, options, net_of, batch), batch)
        except NoGradientError as error:
            if name == names[-1]:
                raise ConfigError(f"diagnose.reference: {error}") from None
    raise AssertionError


def _integrated(config: Config, options: Estimator, net_of: Callable[[Config], GLR], batch: Batch) -> GLR:
    """Returns the network with these options, and with the head `expected` where loss and network allow it.

    J is the same, and the reference has less noise than with draws.
    """
    if options.name != "pathwise":
        chosen = options.model_copy(update={"head": "auto"})
        net = net_of(config.model_copy(update={"estimator": chosen}))
        if net.bind(batch.x, batch.y, batch.loss).head.kind == EXPECTED:
            return net
    return net_of(config.model_copy(update={"estimator": options}))


def cosines_of(estimates: Tensor, reference: Tensor) -> Tensor:
    """Returns the cosine of each estimate [R, P] to the gradient that the reference [C, P] estimates: [R]."""
    cosines: Tensor = estimates @ reference.mean(0) / (estimates.norm(dim=1) * norm_squared(reference) ** 0.5)
    return cosines


def variance_of(estimates: Tensor, reference: Tensor) -> float:
    """Returns the variance of the estimates [R, P] relative to |g|²."""
    return (estimates.var(0).sum() / norm_squared(reference)).item()


def norm_squared(reference: Tensor) -> float:
    """Returns |g|² without the reference's own variance; NaN if the reference is pure noise."""
    corrected = (reference.mean(0).square().sum() - _variance_of_mean(reference)).item()
    return corrected if corrected > 0 else math.nan


def _variance_of_mean(reference: Tensor) -> float:
    """Returns the variance of the reference's mean, summed over the parameters."""
    return (reference.var(0).sum() / len(reference)).item()


def relative_errors(reference: dict[str, Tensor]) -> dict[str, float]:
    """Returns the standard error of the reference relative to |g|, by site."""
    return {site: (_variance_of_mean(g) / norm_squared(g)) ** 0.5 for site, g in reference.items()}


def without_nan(value: Any) -> Any:
    """Replaces NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
