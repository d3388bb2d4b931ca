"""Counts of the draws of one image, from which certificates and their checks are computed. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from scipy.special import ndtri

from glr_dist.robustness.certificates.bounds import lower_bound, upper_bound

_CHANCE = 1e-9  # probability that one check fails by chance


class Attacked(NamedTuple):
    """Result of an attack on one image.

    Attributes:
        distance: L2 distance of the attacked image.
        top: the class that came first most often there, in draws of its own.
        of_top: how often.
        of_class: how often the smoothed prediction at the original image came first there.
    """

    distance: float
    top: int
    of_top: int
    of_class: int


class Verdict(NamedTuple):
    """Counts of the draws of one image.

    Attributes:
        label: the true class.
        predicted: the class that came first most often in the draws that choose.
        successes: how often it came first in the draws that count.
        attacked: the result of each attack, in the order of its radii; empty if the image was not attacked.
    """

    label: int
    predicted: int
    successes: int
    attacked: tuple[Attacked, ...] = ()

    @classmethod
    def of(cls, label: int, predicted: int, successes: int, attacked: list[list[float]]) -> Verdict:
        """Returns the verdict of an entry of a journal."""
        found = (Attacked(float(d), int(top), int(of_top), int(of_class)) for d, top, of_top, of_class in attacked)
        return cls(int(label), int(predicted), int(successes), tuple(found))


def contradiction(verdict: Verdict, attacked: Attacked, draws: int, lipschitz: float, radius: float) -> str | None:
    """Returns how an attacked image contradicts the certificate, or None.

    The certificate promises more than a class: at distance d, the class keeps a probability of at least
    Φ(Φ⁻¹(p) - L d). Both probabilities are bounded with confidence 1 - 10⁻⁹, so that chance fails no run.

    Args:
        verdict: the counts at the original image.
        attacked: the counts at the attacked one.
        draws: n, number of draws at each.
        lipschitz: L, a bound of the noise's standard deviations per unit of distance.
        radius: the certified radius; 0 for an abstention.
    """
    of_other = attacked.of_top if attacked.top != verdict.predicted else 0
    if attacked.distance <= radius and lower_bound(of_other, draws, _CHANCE) > 0.5:
        return (
            f"class {verdict.predicted} is certified within {radius:.4f}, but at distance {attacked.distance:.4f} "
            f"class {attacked.top} has {attacked.of_top:,} of {draws:,} draws"
        )
    below, above = lower_bound(verdict.successes, draws, _CHANCE), upper_bound(attacked.of_class, draws, _CHANCE)
    if ndtri(above) < ndtri(below) - lipschitz * attacked.distance - 1e-9:
        return (
            f"class {verdict.predicted} has {verdict.successes:,} of {draws:,} draws, and at distance "
            f"{attacked.distance:.4f} only {attacked.of_class:,}, fewer than a slope of {lipschitz:.4g} allows"
        )
    return None
