"""Gradient quality: how good the estimates of each site's gradient are, against K and M.

With ĝ_1 … ĝ_R independent estimates of a site's gradient g (all parameters that the site owns, flattened), ḡ their
mean and r̄ the mean of C reference estimates:

    cosine         mean of ĝ·r̄ / (|ĝ| |g|)
    relative bias  ḡ·r̄ / |g|² - 1, which a factor k on every estimate shows as k - 1
    variance       Σ |ĝ - ḡ|² / (R - 1) / |g|²

|g|² is |r̄|² less the variance of r̄, so that the reference's own error does not lower the cosine; it is reported.
Figures are NaN (null in the file) where the reference is nothing but noise: raise `diagnose.reference_passes`.
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

from glr_dist import config, data
from glr_dist.build import device_of, network_of
from glr_dist.config import Config
from glr_dist.errors import ConfigError, NoGradientError
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.figures import figure_of
from glr_dist.files import write_atomically
from glr_dist.glr import GLR
from glr_dist.losses import LOSSES, Loss
from glr_dist.text import one_line
from glr_dist.training import checkpoint

_CHUNKS = 20  # independent parts of the reference, which give its error
# Steps key the noise: those of the reference and of the draws are disjoint, and far from those of training.
_REFERENCE_STEP, _DRAW_STEP = 2**40, 2**41


@dataclass(frozen=True)
class Quality:
    """The quality of one site's estimates at one K and M; errors are standard errors."""

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
class Report:
    """What `diagnose` measured; `str` gives the table."""

    estimator: str
    reference: str
    reference_error: dict[str, float]
    rows: tuple[Quality, ...]

    def __str__(self) -> str:
        lines = [
            f"estimator {self.estimator}, reference {self.reference}; its relative error: "
            + ", ".join(f"{site} {error:.4f}" for site, error in self.reference_error.items()),
            f"{'site':<12}{'K':>6}{'M':>5}{'cosine':>17}{'relative bias':>20}{'variance':>11}{'passes':>9}{'ms':>9}",
        ]
        lines += [
            f"{q.site:<12}{q.copies:>6}{q.passes:>5}{q.cosine:>9.4f} ± {q.cosine_error:.4f}"
            f"{q.bias:>+11.4f} ± {q.bias_error:.4f}{q.variance:>11.4f}{q.forward_passes:>9.2f}{q.milliseconds:>9.1f}"
            for q in self.rows
        ]
        return "\n".join(lines)


def diagnose(settings: Config, out: Path, weights: Path | None = None) -> Report:
    """Measures the estimates as configured and writes `diagnose.json`, `diagnose.png` and `diagnose.yaml` to a folder.

    Args:
        settings: the configuration; its section `diagnose` says what to measure.
        out: the folder.
        weights: a checkpoint to measure at; the initial weights by default.

    Raises:
        ConfigError: a user's mistake.
        CheckpointError: the checkpoint is damaged.
        OSError: the folder cannot be written.
    """
    chosen = settings.diagnose
    pathwise = settings.estimator.name == "pathwise"
    tried = [
        settings.estimator
        if pathwise and passes == settings.estimator.passes
        else config.build(
            config.Estimator,
            settings.estimator.model_dump() | {"passes": passes} | ({} if pathwise else {"copies": copies}),
            "estimator.",
        )
        for passes in chosen.passes
        for copies in (chosen.copies[:1] if pathwise else chosen.copies)
    ]
    for options in tried:
        config.check_estimator(options, settings.noise, settings.training.loss)
    keep_freed_memory()
    device = device_of(settings.execution)
    dataset = data.load(settings.data)
    x, y = dataset.train.to(device).batch(slice(0, chosen.batch))
    loss = LOSSES[settings.training.loss]
    kept = checkpoint.load(weights, device) if weights is not None else None

    def net_of(options: config.Estimator) -> GLR:
        net = network_of(settings.model_copy(update={"estimator": options}), dataset, device)
        if kept is not None:
            state = dict(kept["network"])
            if settings.noise.learn == "none":  # the scales are the configuration's, not the checkpoint's
                if settings.noise.schedule:
                    net.set_scale(settings.noise.scale_after(kept["epoch"]))
                state |= {key: value for key, value in net.state_dict().items() if key.startswith("log_scales.")}
            try:
                net.load_state_dict(state)
            except RuntimeError as error:
                reason = one_line(error)
                raise ConfigError(f"--checkpoint: {weights} is of another network ({reason})") from None
        return net.train()

    net_of(tried[0])  # what is wrong with it is said before anything is written
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "diagnose.yaml", config.dump_config(settings).encode())
    bar = tqdm(total=_CHUNKS + len(tried) * chosen.draws, disable=not sys.stderr.isatty(), desc="diagnose")
    with bar:
        batch = Batch(x, y, loss, bar)
        name, reference = _reference(settings, net_of, batch)
        rows = [row for options in tried for row in _qualities(net_of(options), batch, chosen.draws, reference)]
    errors = {site: (_variance_of_mean(g) / _norm_squared(g)) ** 0.5 for site, g in reference.items()}
    report = Report(settings.estimator.name, name, errors, tuple(sorted(rows, key=lambda row: row.site)))
    content = json.dumps(_without_nan(asdict(report)), indent=2, allow_nan=False) + "\n"
    write_atomically(out / "diagnose.json", content.encode())
    _draw(report, out / "diagnose.png")
    return report


@dataclass(frozen=True)
class Batch:
    """What all estimates share, and the progress bar that counts them."""

    x: Tensor
    y: Tensor
    loss: Loss
    bar: tqdm[Any]


def _gradients(net: GLR, batch: Batch, steps: Sequence[int]) -> dict[str, Tensor]:
    """Independent estimates by site, each the site's parameters in one row [R, P] of float64."""
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


def _reference(
    settings: Config, net_of: Callable[[config.Estimator], GLR], batch: Batch
) -> tuple[str, dict[str, Tensor]]:
    """The name of the reference estimator and its estimates [C, P] by site."""
    chosen = settings.diagnose
    estimator = settings.estimator.name
    other = "conditional" if estimator != "conditional" else "joint"
    names = ("pathwise", other) if chosen.reference == "auto" else (chosen.reference,)
    per_chunk = max(2, 2 * round(chosen.reference_passes / _CHUNKS / 2))
    steps = range(_REFERENCE_STEP, _REFERENCE_STEP + _CHUNKS)
    for name in names:
        copies = settings.estimator.copies
        sizes: dict[str, dict[str, Any]] = {
            "pathwise": {"passes": per_chunk},
            "joint": {"copies": per_chunk},
            "conditional": {"copies": copies, "passes": max(1, per_chunk // max(config.per_site(copies)))},
        }
        options = config.build(config.Estimator, {"name": name, **sizes[name]})
        if name == "pathwise" and settings.noise.law == "none":
            options = settings.estimator
        try:
            return name, _gradients(net_of(options), batch, steps)
        except NoGradientError as error:
            if name == names[-1]:
                raise ConfigError(f"diagnose.reference: {error}") from None
    raise AssertionError


def _norm_squared(reference: Tensor) -> float:
    """|g|² without what the reference's own variance adds to it; NaN where the reference is nothing but noise."""
    corrected = (reference.mean(0).square().sum() - _variance_of_mean(reference)).item()
    return corrected if corrected > 0 else math.nan


def _without_nan(value: Any) -> Any:
    """The same with null for NaN, which JSON does not know."""
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


def _draw(report: Report, path: Path) -> None:
    """Cosine and variance of each site against the cost, a line for each M."""
    figure = figure_of(11, 4.5)
    left, right = figure.subplots(1, 2)
    passes = sorted({row.passes for row in report.rows})
    lines = [(m,) for m in passes] if len({row.copies for row in report.rows}) > 1 else [tuple(passes)]
    for index, site in enumerate(dict.fromkeys(row.site for row in report.rows)):
        for style, line in zip(itertools.cycle(("-", "--", ":", "-.")), lines, strict=False):
            rows = [row for row in report.rows if row.site == site and row.passes in line]
            copies = [row.copies * row.passes for row in rows]
            label = f"site {site}" + (f", M = {line[0]}" if len(lines) > 1 else "")
            look = {"marker": "o", "linestyle": style, "color": f"C{index}", "label": label}
            left.errorbar(copies, [row.cosine for row in rows], [row.cosine_error for row in rows], capsize=3, **look)
            right.plot(copies, [row.variance for row in rows], **look)
    left.set(xlabel="copies K · M", ylabel="cosine to the true gradient", ylim=(None, 1.02))
    right.set(xlabel="copies K · M", ylabel="variance / |gradient|²")
    if any(row.variance > 0 for row in report.rows):  # backpropagation without noise has none
        right.set_yscale("log")
    ticks = sorted({row.copies * row.passes for row in report.rows})
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    figure.suptitle(f"{report.estimator} against {report.reference}")
    figure.savefig(path, dpi=120)
