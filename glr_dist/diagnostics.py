"""Quality of the estimates of each site's gradient, against K and M.

With ĝ_1 … ĝ_R independent estimates of a site's gradient g (all parameters that the site owns, flattened), ḡ their
mean and r̄ the mean of C reference estimates:

    cosine         mean of ĝ·r̄ / (|ĝ| |g|)
    relative bias  ḡ·r̄ / |g|² - 1; a factor k on every estimate appears as k - 1
    variance       Σ |ĝ - ḡ|² / (R - 1) / |g|²

|g|² is |r̄|² minus the variance of r̄, so that the reference's own error, which is reported, does not lower the cosine.
Figures are NaN (null in the file) if the reference is nothing but noise; raise `diagnose.reference_passes` then.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from glr_dist import data
from glr_dist.build import device_of, network_of
from glr_dist.config import Config, Estimator, build, check_estimator, dump_config, per_site
from glr_dist.errors import ConfigError, NoGradientError
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.figures import figure_of
from glr_dist.files import write_atomically
from glr_dist.glr import GLR
from glr_dist.losses import LOSSES, Loss
from glr_dist.text import one_line
from glr_dist.training import checkpoint

_CHUNKS = 20  # independent parts of the reference; their spread gives its error
# The step keys the noise: reference, draws and training use disjoint steps.
_REFERENCE_STEP, _DRAW_STEP = 2**40, 2**41


@dataclass(frozen=True)
class Quality:
    """Quality of one site's estimates at one K and M; errors are standard errors."""

    site: str
    copies: int
    passes: int
    cosine: float
    cosine_error: float
    bias: float
    bias_error: float
    variance: float
    forward_passes: float
    milliseconds: float


@dataclass(frozen=True)
class Diagnosis:
    """Result of `diagnose`; `str` gives the table."""

    estimator: str
    reference: str
    reference_error: dict[str, float]
    qualities: tuple[Quality, ...]

    def __str__(self) -> str:
        lines = [
            f"estimator {self.estimator}, reference {self.reference}; its relative error: "
            + ", ".join(f"{site} {error:.4f}" for site, error in self.reference_error.items()),
            f"{'site':<12}{'K':>6}{'M':>5}{'cosine':>17}{'relative bias':>20}{'variance':>11}{'passes':>9}{'ms':>9}",
        ]
        lines += [
            f"{q.site:<12}{q.copies:>6}{q.passes:>5}{q.cosine:>9.4f} ± {q.cosine_error:.4f}"
            f"{q.bias:>+11.4f} ± {q.bias_error:.4f}{q.variance:>11.4f}{q.forward_passes:>9.2f}{q.milliseconds:>9.1f}"
            for q in self.qualities
        ]
        return "\n".join(lines)


def diagnose(config: Config, out: Path, weights: Path | None = None) -> Diagnosis:
    """Measures the estimates as configured and writes `diagnose.json`, `diagnose.png` and `diagnose.yaml` to a folder.

    Args:
        config: the configuration; its section `diagnose` lists what to measure.
        out: the folder.
        weights: a checkpoint to measure at; by default the initial weights.

    Raises:
        ConfigError: the configuration or the checkpoint does not fit.
        CheckpointError: the checkpoint is damaged.
        OSError: the folder cannot be written.
    """
    chosen = config.diagnose
    pathwise = config.estimator.name == "pathwise"
    tried = [
        config.estimator
        if pathwise and passes == config.estimator.passes
        else build(
            Estimator,
            config.estimator.model_dump() | {"passes": passes} | ({} if pathwise else {"copies": copies}),
            "estimator.",
        )
        for passes in chosen.passes
        for copies in (chosen.copies[:1] if pathwise else chosen.copies)
    ]
    for options in tried:
        check_estimator(options, config.noise, config.training.loss)
    keep_freed_memory()
    device = device_of(config.execution)
    dataset = data.load(config.data)
    x, y = dataset.train.to(device).batch(slice(0, chosen.batch))
    loss = LOSSES[config.training.loss]
    kept = checkpoint.load(weights, device) if weights is not None else None

    def net_of(options: Estimator) -> GLR:
        net = network_of(config.model_copy(update={"estimator": options}), dataset, device)
        if kept is not None:
            state = dict(kept["network"])
            if config.noise.learn == "none":  # the configuration's scales count, not the checkpoint's
                if config.noise.schedule:
                    net.set_scale(config.noise.scale_after(kept["epoch"]))
                state |= {key: value for key, value in net.state_dict().items() if key.startswith("log_scales.")}
            try:
                net.load_state_dict(state)
            except RuntimeError as error:
                raise ConfigError(f"--checkpoint: {weights} belongs to another network ({one_line(error)})") from None
        return net.train()

    net_of(tried[0])  # reports errors before anything is written
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "diagnose.yaml", dump_config(config).encode())
    bar = tqdm(total=_CHUNKS + len(tried) * chosen.draws, disable=not sys.stderr.isatty(), desc="diagnose")
    with bar:
        batch = Batch(x, y, loss, bar)
        name, reference = _reference(config, net_of, batch)
        qualities = [
            found for options in tried for found in _qualities(net_of(options), batch, chosen.draws, reference)
        ]
    errors = {site: (_variance_of_mean(g) / _norm_squared(g)) ** 0.5 for site, g in reference.items()}
    diagnosis = Diagnosis(
        config.estimator.name, name, errors, tuple(sorted(qualities, key=lambda quality: quality.site))
    )
    content = json.dumps(_without_nan(asdict(diagnosis)), indent=2, allow_nan=False) + "\n"
    write_atomically(out / "diagnose.json", content.encode())
    _draw(diagnosis, out / "diagnose.png")
    return diagnosis


@dataclass(frozen=True)
class Batch:
    """Batch and loss of all estimates, and the progress bar that counts them."""

    x: Tensor
    y: Tensor
    loss: Loss
    bar: tqdm[Any]


def _gradients(net: GLR, batch: Batch, steps: Sequence[int]) -> dict[str, Tensor]:
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


def _reference(config: Config, net_of: Callable[[Estimator], GLR], batch: Batch) -> tuple[str, dict[str, Tensor]]:
    """Returns the name of the reference estimator and its estimates [C, P] by site."""
    chosen = config.diagnose
    estimator = config.estimator.name
    other = "conditional" if estimator != "conditional" else "joint"
    names = ("pathwise", other) if chosen.reference == "auto" else (chosen.reference,)
    per_chunk = max(2, 2 * round(chosen.reference_passes / _CHUNKS / 2))
    steps = range(_REFERENCE_STEP, _REFERENCE_STEP + _CHUNKS)
    for name in names:
        copies = config.estimator.copies
        sizes: dict[str, dict[str, Any]] = {
            "pathwise": {"passes": per_chunk},
            "joint": {"copies": per_chunk},
            "conditional": {"copies": copies, "passes": max(1, per_chunk // max(per_site(copies)))},
        }
        options = build(Estimator, {"name": name, **sizes[name]})
        if name == "pathwise" and config.noise.law == "none":
            options = config.estimator
        try:
            return name, _gradients(net_of(options), batch, steps)
        except NoGradientError as error:
            if name == names[-1]:
                raise ConfigError(f"diagnose.reference: {error}") from None
    raise AssertionError


def _norm_squared(reference: Tensor) -> float:
    """Returns |g|² without the reference's own variance; NaN if the reference is nothing but noise."""
    corrected = (reference.mean(0).square().sum() - _variance_of_mean(reference)).item()
    return corrected if corrected > 0 else math.nan


def _without_nan(value: Any) -> Any:
    """Replaces NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _variance_of_mean(reference: Tensor) -> float:
    return (reference.var(0).sum() / len(reference)).item()


def _qualities(net: GLR, batch: Batch, draws: int, reference: dict[str, Tensor]) -> list[Quality]:
    options = net.options
    started = time.perf_counter()
    estimates = _gradients(net, batch, range(_DRAW_STEP, _DRAW_STEP + draws))
    milliseconds = 1000 * (time.perf_counter() - started) / draws
    _, forward_passes = net.cost(batch.x, batch.y)
    rows = []
    for site, g in estimates.items():
        r = reference[site]
        norm = _norm_squared(r)
        along = g @ r.mean(0)
        cosines = along / (g.norm(dim=1) * norm**0.5)
        error = (along.var() / draws + (r @ g.mean(0)).var() / len(r)).sqrt() / norm
        rows.append(
            Quality(
                site=site,
                copies=options.copies if isinstance(options.copies, int) and options.name != "pathwise" else 1,
                passes=options.passes if isinstance(options.passes, int) else 1,
                cosine=cosines.mean().item(),
                cosine_error=(cosines.std() / draws**0.5).item(),
                bias=(along.mean() / norm - 1).item(),
                bias_error=error.item(),
                variance=(g.var(0).sum() / norm).item(),
                forward_passes=forward_passes,
                milliseconds=milliseconds,
            )
        )
    return rows


def _draw(diagnosis: Diagnosis, path: Path) -> None:
    """Draws cosine and variance of each site against K · M, one line per M."""
    figure = figure_of(11, 4.5)
    left, right = figure.subplots(1, 2)
    passes = sorted({row.passes for row in diagnosis.qualities})
    lines = [(m,) for m in passes] if len({row.copies for row in diagnosis.qualities}) > 1 else [tuple(passes)]
    for index, site in enumerate(dict.fromkeys(row.site for row in diagnosis.qualities)):
        for style, line in zip(itertools.cycle(("-", "--", ":", "-.")), lines, strict=False):
            rows = [row for row in diagnosis.qualities if row.site == site and row.passes in line]
            copies = [row.copies * row.passes for row in rows]
            label = f"site {site}" + (f", M = {line[0]}" if len(lines) > 1 else "")
            look = {"marker": "o", "linestyle": style, "color": f"C{index}", "label": label}
            left.errorbar(copies, [row.cosine for row in rows], [row.cosine_error for row in rows], capsize=3, **look)
            right.plot(copies, [row.variance for row in rows], **look)
    left.set(xlabel="copies K · M", ylabel="cosine to the true gradient", ylim=(None, 1.02))
    right.set(xlabel="copies K · M", ylabel="variance / |gradient|²")
    if any(row.variance > 0 for row in diagnosis.qualities):  # backpropagation without noise has no variance
        right.set_yscale("log")
    ticks = sorted({row.copies * row.passes for row in diagnosis.qualities})
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    figure.suptitle(f"{diagnosis.estimator} against {diagnosis.reference}")
    figure.savefig(path, dpi=120)
