"""Pairs of a noise scale and a number of copies, and the choice of the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.95  # fraction of the highest target cosine that the recommended pair must reach


@dataclass(frozen=True)
class Cosine:
    """A mean cosine and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True)
class Pair:
    """Quality and cost of the estimates at one σ and K.

    Attributes:
        scale: σ.
        copies: K.
        cosine: cosine to the gradient at this σ, mean over the sites.
        target_cosine: cosine to the target, mean over the sites.
        variance: Σ |ĝ - ḡ|² / (R - 1) / |g_σ|², mean over the sites.
        forward_passes: forward passes of a step.
        milliseconds: time of an estimate on this machine.
        sites: cosine to the target, by site.
    """

    scale: float
    copies: int
    cosine: Cosine
    target_cosine: Cosine
    variance: float
    forward_passes: float
    milliseconds: float
    sites: dict[str, Cosine]


def recommended(pairs: Sequence[Pair]) -> Pair | None:
    """Returns the cheapest pair that reaches `SHARE` of the highest target cosine; None if no cosine is positive."""
    highest = max((p.target_cosine.mean for p in pairs if p.target_cosine.mean > 0), default=math.nan)
    enough = [pair for pair in pairs if pair.target_cosine.mean >= SHARE * highest]
    return min(enough, key=lambda pair: (pair.forward_passes, -pair.target_cosine.mean), default=None)


def advice(pairs: Sequence[Pair], chosen: Pair | None, *, clean: bool) -> str:
    """Returns one line that recommends a pair and gives the reason.

    Args:
        pairs: the pairs.
        chosen: the recommended one.
        clean: True if the target is the gradient without noise, which does not favour any σ.
    """
    if chosen is None:
        if any(not math.isnan(pair.target_cosine.mean) for pair in pairs):
            return "recommended: nothing, since no target cosine is positive; raise diagnose.copies"
        return "recommended: nothing, since the references are pure noise; raise diagnose.reference_passes"
    highest = max(pair.target_cosine.mean for pair in pairs if not math.isnan(pair.target_cosine.mean))
    share = 100 * chosen.target_cosine.mean / highest
    scales = sorted({pair.scale for pair in pairs})
    caution = ""
    if not clean:
        caution = "; the target favours the smallest σ: choose σ by accuracy, e.g. with glr-dist tune"
    elif len(scales) > 1 and chosen.scale in (scales[0], scales[-1]):
        caution = f"; try {'smaller' if chosen.scale == scales[0] else 'larger'} diagnose.scales too"
    return (
        f"recommended: noise.scale={chosen.scale:g} estimator.copies={chosen.copies}, "
        f"{share:.0f} % of the highest target cosine in {chosen.forward_passes:.1f} passes{caution}"
    )
