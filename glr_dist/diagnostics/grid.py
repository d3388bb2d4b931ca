"""Quality and cost of the estimates for each pair of a noise scale σ and a number of copies K.

With ĝ an estimate at (σ, K), g_σ the gradient of J with noise of that scale, and g the target:

    cosine         mean over sites and draws of the cosine of ĝ and g_σ: a smaller variance raises it
    target cosine  the same with g: a larger σ lowers the variance of ĝ, but moves g_σ away from g

The target is the gradient without noise, since accuracy is measured without noise. If that gradient does not exist
(threshold units, the 0-1 loss), the target is the gradient at the smallest σ of the grid. The mean over the sites
weights all of them equally.

The recommended pair has the fewest forward passes among those whose target cosine reaches `SHARE` of the highest one in
the grid; ties go to the highest target cosine.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from glr_dist.config import Config, Estimator, check_estimator, dump_config
from glr_dist.diagnostics.estimates import (
    CHUNKS,
    Batch,
    Networks,
    chunks_of,
    cosines_of,
    draws_of,
    rebuilt,
    reference_of,
    relative_errors,
    variance_of,
    without_nan,
)
from glr_dist.diagnostics.grid_picture import grid_figure
from glr_dist.diagnostics.grid_table import grid_table
from glr_dist.diagnostics.pairs import Cosine, Pair, recommended
from glr_dist.errors import ConfigError, NoGradientError
from glr_dist.figures import draw
from glr_dist.files import write_atomically

CLEAN = "the gradient without noise"
SMALLEST = "the gradient at the smallest σ, since there is none without noise"


@dataclass(frozen=True)
class Grid:
    """Result of `diagnose_grid`.

    Attributes:
        estimator: name of the estimator.
        references: name of the reference estimator of g_σ, by σ.
        reference_errors: its relative error, by σ and site.
        target: description of the target.
        pairs: the pairs, in the order of σ and K.
        recommended: the recommended pair; None if the references are pure noise.
    """

    estimator: str
    references: dict[float, str]
    reference_errors: dict[float, dict[str, float]]
    target: str
    pairs: tuple[Pair, ...]
    recommended: Pair | None

    def table(self, columns: int | None = None) -> str:
        """Returns the table and the recommendation; columns that do not fit into the width `columns` are left out."""
        names = ", ".join(dict.fromkeys(self.references.values()))
        error = max((e for errors in self.reference_errors.values() for e in errors.values()), default=math.nan)
        rows = grid_table(self.pairs, self.recommended, clean=self.target == CLEAN, columns=columns)
        head = [f"estimator {self.estimator}, reference {names} (relative error up to {error:.4f})"]
        return "\n".join([*head, f"target: {self.target}", *rows])

    def __str__(self) -> str:
        return self.table()


def diagnose_grid(config: Config, out: Path, weights: Path | None = None) -> Grid:
    """Measures each pair of `diagnose.scales` and `diagnose.copies`; writes `grid.json` and `.png`, `diagnose.yaml`.

    Each σ applies to all sites and replaces the scales of the configuration and of the checkpoint.

    Args:
        config: the configuration.
        out: the folder.
        weights: a checkpoint to measure at; by default the weights that training begins with.

    Raises:
        ConfigError: the configuration or the checkpoint does not fit.
        CheckpointError: the checkpoint is damaged.
        OSError: the folder cannot be written.
    """
    if config.estimator.name == "pathwise":
        raise ConfigError("--grid: estimator.name 'pathwise' does not redraw noise, so there are no copies to compare")
    chosen = config.diagnose
    scales = sorted(set(chosen.scales))
    options = [rebuilt(config.estimator, copies=copies) for copies in sorted(set(chosen.copies))]
    for each in options:
        check_estimator(each, config.noise, config.training.loss)
    networks = Networks(config, weights)
    networks.net(_with(config, scales[0], options[0]))  # reports errors before anything is written
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "diagnose.yaml", dump_config(config).encode())
    total = (1 + len(scales)) * CHUNKS + len(scales) * len(options) * chosen.draws
    with tqdm(total=total, disable=not sys.stderr.isatty(), desc="diagnose") as bar:
        batch = networks.batch(bar)
        found = {scale: reference_of(_with(config, scale, options[0]), networks.net, batch) for scale in scales}
        clean = _clean_gradient(config, networks, batch)
        target = found[scales[0]][1] if clean is None else clean
        pairs = tuple(
            _pair(networks, _with(config, scale, each), scale, batch, found[scale][1], target)
            for scale in scales
            for each in options
        )
    grid = Grid(
        estimator=config.estimator.name,
        references={scale: name for scale, (name, _) in found.items()},
        reference_errors={scale: relative_errors(reference) for scale, (_, reference) in found.items()},
        target=SMALLEST if clean is None else CLEAN,
        pairs=pairs,
        recommended=recommended(pairs),
    )
    content = json.dumps(without_nan(asdict(grid)), indent=2, allow_nan=False) + "\n"
    write_atomically(out / "grid.json", content.encode())
    draw(out / "grid.png", lambda: grid_figure(pairs, grid.recommended))
    return grid


def _with(config: Config, scale: float, options: Estimator) -> Config:
    """Returns the configuration with fixed noise of one scale and with the given estimator options."""
    noise = config.noise.model_copy(update={"scale": scale, "schedule": {}, "learn": "none"})
    return config.model_copy(update={"noise": noise, "estimator": options})


def _clean_gradient(config: Config, networks: Networks, batch: Batch) -> dict[str, Tensor] | None:
    """Returns the gradient without noise by site [C, P]; None if it does not exist."""
    noise = config.noise.model_copy(update={"law": "none", "schedule": {}, "learn": "none"})
    options = Estimator(name="pathwise", sampler="iid")
    try:
        return chunks_of(networks.net(config.model_copy(update={"noise": noise, "estimator": options})), batch)
    except NoGradientError:
        batch.bar.total = (batch.bar.total or 0) - CHUNKS
        return None


def _pair(
    networks: Networks,
    config: Config,
    scale: float,
    batch: Batch,
    reference: dict[str, Tensor],
    target: dict[str, Tensor],
) -> Pair:
    """Measures one pair of σ and K."""
    assert isinstance(config.estimator.copies, int)
    net, draws = networks.net(config), config.diagnose.draws
    estimates, milliseconds = draws_of(net, batch, draws)
    own = {site: cosines_of(g, reference[site]) for site, g in estimates.items()}
    wanted = {site: cosines_of(g, target[site]) for site, g in estimates.items()}
    variances = [variance_of(g, reference[site]) for site, g in estimates.items()]
    return Pair(
        scale=scale,
        copies=config.estimator.copies,
        cosine=_mean(own),
        target_cosine=_mean(wanted),
        variance=math.fsum(variances) / len(variances),
        forward_passes=net.cost(batch.x, batch.y, batch.loss)[1],
        milliseconds=milliseconds,
        sites={site: _mean({site: cosines}) for site, cosines in wanted.items()},
    )


def _mean(cosines: dict[str, Tensor]) -> Cosine:
    """Returns the mean over sites and draws; its error is that over draws, since the sites of a draw share noise."""
    by_draw = torch.stack(list(cosines.values())).mean(0)
    return Cosine(by_draw.mean().item(), (by_draw.std() / len(by_draw) ** 0.5).item())
