"""Confidence bounds of a probability, and the certified radius that follows from it."""

from __future__ import annotations

from scipy.special import betaincinv, ndtri

_ROUNDING = 1e-12  # relative: the inverse beta function is accurate to about 1e-14


def lower_bound(successes: int, draws: int, alpha: float) -> float:
    """Returns a lower confidence bound of a probability p: P(bound > p) <= alpha for every p.

    bound = the alpha-quantile of Beta(k, n - k + 1), or 0 for k = 0

    Args:
        successes: k, number of successes.
        draws: n, number of independent draws.
        alpha: probability that the bound is wrong.

    Reference:
        Clopper, Pearson: The use of confidence or fiducial limits, Biometrika 1934.
    """
    if not 0 <= successes <= draws or draws < 1:
        raise ValueError(f"{successes} successes of {draws} draws are not possible")
    if successes == 0:
        return 0.0
    bound = float(betaincinv(successes, draws - successes + 1, alpha))
    return max(0.0, bound * (1 - _ROUNDING))


def upper_bound(successes: int, draws: int, alpha: float) -> float:
    """Returns an upper confidence bound of a probability p, 1 - the lower bound of the failures."""
    return 1 - lower_bound(draws - successes, draws, alpha)


def certified_radius(successes: int, draws: int, alpha: float, lipschitz: float) -> float:
    """Returns the certified L2 radius Φ⁻¹(p) / L of the class that came first in k of n draws; 0: abstention.

    Within it, the class keeps a probability above 1/2 under the noise, and so remains the smoothed prediction.

    Args:
        successes: k, how often the class came first.
        draws: n.
        alpha: probability that the certificate is wrong.
        lipschitz: L, how many standard deviations of the noise a unit of L2 distance is at most.

    Reference:
        Cohen, Rosenfeld, Kolter: Certified Adversarial Robustness via Randomized Smoothing, ICML 2019, theorem 1.
    """
    p = lower_bound(successes, draws, alpha)
    if p <= 0.5:
        return 0.0
    return float(ndtri(p)) / lipschitz
