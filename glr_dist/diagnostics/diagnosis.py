"""Quality of the estimates of each site's gradient, against K and M.

With ĝ_1 … ĝ_R independent estimates of a site's gradient g (all parameters that the site owns, flattened), ḡ their
mean and r̄ the mean of C reference estimates:

    cosine         mean of ĝ·r̄ / (|ĝ| |g|)
    relative bias  ḡ·r̄ / |g|² - 1; a factor k on every estimate shows up as k - 1
    variance       Σ |ĝ - ḡ|² / (R - 1) / |g|²

|g|² is |r̄|² minus the variance of r̄, so that the reference's own error, which is reported, does not lower the cosine.
If the reference is pure noise, figures are NaN (null in the file); raise `diagnose.reference_passes` in that case.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from glr_dist.config import Config, Estimator, check_estimator, dump_config
from glr_dist.diagnostics.estimates import (
    CHUNKS,
    Batch,
    Networks,
    cosines_of,
    draws_of,
    norm_squared,
    rebuilt,
    reference_of,
    relative_errors,
    variance_of,
    without_nan,
)
from glr_dist.diagnostics.recommendation import PASSES, Recommendation, can_recommend, heads, recommendations
from glr_dist.figures import draw, figure_of
from glr_dist.files import write_atomically
from glr_dist.glr import GLR


@dataclass(frozen=True)
class Quality:
    """Quality of one site's estimates at one K and M; errors are standard errors.

    `copies` is the K of the step; the last site has none where the head is `expected`. `allotted` says that a budget
    decided K and M.
    """

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
    allotted: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Result of `diagnose`; `str` gives the table and the recommendations.

    `spaces` are the sites that redraw only the noise inside the column space of their input, with its dimensions.
    """

    estimator: str
    head: str
    spaces: dict[str, int]
    reference: str
    reference_error: dict[str, float]
    qualities: tuple[Quality, ...]
    recommendations: tuple[Recommendation, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"estimator {self.estimator}, head {self.head}, {self._spaces()}reference {self.reference}; "
            "its relative error: " + ", ".join(f"{site} {error:.4f}" for site, error in self.reference_error.items()),
            f"{'site':<12}{'K':>6}{'M':>5}{'cosine':>17}{'relative bias':>20}{'variance':>11}{'passes':>9}{'ms':>9}",
        ]
        lines += [
            f"{q.site:<12}{q.copies:>6}{q.passes:>5}{q.cosine:>9.4f} ± {q.cosine_error:.4f}"
            f"{q.bias:>+11.4f} ± {q.bias_error:.4f}{q.variance:>11.4f}{q.forward_passes:>9.2f}{q.milliseconds:>9.1f}"
            for q in self.qualities
        ]
        lines += map(str, self.recommendations)
        return "\n".join(lines)

    def _spaces(self) -> str:
        found = ", ".join(f"{site} ({units} dimensions)" for site, units in self.spaces.items())
        return f"redraws inside the column space of {found}, " if found else ""


def diagnose(config: Config, out: Path, weights: Path | None = None) -> Diagnosis:
    """Measures the estimates as configured and writes `diagnose.json`, `diagnose.png` and `diagnose.yaml` to a folder.

    Args:
        config: the configuration; its section `diagnose` lists what to measure.
        out: the folder.
        weights: a checkpoint to measure at; by default the weights that training begins with.

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
        else rebuilt(config.estimator, passes=passes, **({} if pathwise else {"copies": copies}))
        for passes in chosen.passes
        for copies in (chosen.copies[:1] if pathwise else chosen.copies)
    ]
    allots = config.estimator.copies == "auto"
    if allots:
        tried.append(config.estimator)
    for options in tried:
        check_estimator(options, config.noise, config.training.loss)
    networks = Networks(config, weights)

    def with_options(options: Estimator) -> GLR:
        return networks.net(config.model_copy(update={"estimator": options}))

    with_options(tried[0])  # reports errors before anything is written
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "diagnose.yaml", dump_config(config).encode())
    recommends = can_recommend(config.estimator)
    measuring = len(heads(config)) * 2 * PASSES if recommends else 0
    with tqdm(
        total=CHUNKS + len(tried) * chosen.draws + measuring, disable=not sys.stderr.isatty(), desc="diagnose"
    ) as bar:
        batch = networks.batch(bar)
        name, reference = reference_of(config, networks.net, batch)
        step = with_options(tried[0]).bind(batch.x, batch.y, batch.loss)
        qualities = [
            found for options in tried for found in _qualities(with_options(options), batch, chosen.draws, reference)
        ]
        recommended = recommendations(config, networks, batch, reference) if recommends else ()
    errors = relative_errors(reference)
    diagnosis = Diagnosis(
        config.estimator.name,
        step.head.kind,
        {site: space.units for site, space in step.spaces.items()},
        name,
        errors,
        tuple(sorted(qualities, key=lambda quality: quality.site)),
        recommended,
    )
    content = json.dumps(without_nan(asdict(diagnosis)), indent=2, allow_nan=False) + "\n"
    write_atomically(out / "diagnose.json", content.encode())
    draw(out / "diagnose.png", lambda: diagnosis_figure(diagnosis))
    return diagnosis


def _qualities(net: GLR, batch: Batch, draws: int, reference: dict[str, Tensor]) -> list[Quality]:
    options = net.options
    estimates, milliseconds = draws_of(net, batch, draws)
    allotment = net.allotment
    _, forward_passes = net.cost(batch.x, batch.y, batch.loss)
    rows = []
    for site, g in estimates.items():
        r = reference[site]
        norm = norm_squared(r)
        along = g @ r.mean(0)
        cosines = cosines_of(g, r)
        error = (along.var() / draws + (r @ g.mean(0)).var() / len(r)).sqrt() / norm
        rows.append(
            Quality(
                site=site,
                copies=allotment.copies[site]
                if allotment is not None
                else options.copies
                if isinstance(options.copies, int) and options.name != "pathwise"
                else 1,
                passes=allotment.passes[site]
                if allotment is not None
                else options.passes
                if isinstance(options.passes, int)
                else 1,
                cosine=cosines.mean().item(),
                cosine_error=(cosines.std() / draws**0.5).item(),
                bias=(along.mean() / norm - 1).item(),
                bias_error=error.item(),
                variance=variance_of(g, r),
                forward_passes=forward_passes,
                milliseconds=milliseconds,
                allotted=allotment is not None,
            )
        )
    return rows


def diagnosis_figure(diagnosis: Diagnosis) -> Any:
    """Returns a figure of cosine and variance of each site against K · M, one line per M."""
    figure = figure_of(11, 4.5)
    left, right = figure.subplots(1, 2)
    fixed = [row for row in diagnosis.qualities if not row.allotted]
    passes = sorted({row.passes for row in fixed})
    lines = [(m,) for m in passes] if len({row.copies for row in fixed}) > 1 else [tuple(passes)]
    for index, site in enumerate(dict.fromkeys(row.site for row in fixed)):
        for style, line in zip(itertools.cycle(("-", "--", ":", "-.")), lines, strict=False):
            rows = [row for row in fixed if row.site == site and row.passes in line]
            copies = [row.copies * row.passes for row in rows]
            label = f"site {site}" + (f", M = {line[0]}" if len(lines) > 1 else "")
            look = {"marker": "o", "linestyle": style, "color": f"C{index}", "label": label}
            left.errorbar(copies, [row.cosine for row in rows], [row.cosine_error for row in rows], capsize=3, **look)
            right.plot(copies, [row.variance for row in rows], **look)
    left.set(xlabel="copies K · M", ylabel="cosine to the true gradient", ylim=(None, 1.02))
    right.set(xlabel="copies K · M", ylabel="variance / |gradient|²")
    if any(row.variance > 0 for row in fixed):  # backpropagation without noise has no variance
        right.set_yscale("log")
    ticks = sorted({row.copies * row.passes for row in fixed})
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    figure.suptitle(f"{diagnosis.estimator} against {diagnosis.reference}")
    return figure
