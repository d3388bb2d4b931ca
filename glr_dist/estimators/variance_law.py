"""The variance of a site's gradient against K and M: a law with three numbers, which are measured.

The M shared passes of an estimate are independent. The R directions of a pass (antithetic pairs, else copies) are
exchangeable within a frame of D orthogonal ones, and independent between frames. Whatever the network and the loss,

    V(R, M)   = (between + within(R)) / M
    within(R) = (q D² frame + r² (frame + direction (1/r - 1/D))) / R²,   R = q D + r,  0 ≤ r < D

    between    variance over shared passes of the mean over all redraws
    frame      variance of the mean over a whole frame, given the shared pass
    direction  variance of a direction minus the covariance of two directions of a frame, given the shared pass

Without frames, directions are independent: within(R) = direction / R. Variances are summed over the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VarianceLaw:
    """The variance of a site's gradient for any K and M.

    Attributes:
        gradient: |g|², the squared norm of the true gradient; positive.
        between, frame, direction: the three variances.
        rows: D, directions of a frame; None if there are no frames.
    """

    gradient: float
    between: float
    frame: float = 0.0
    direction: float = 0.0
    rows: int | None = None

    def within(self, directions: int) -> float:
        """Returns the variance of the mean over R directions, given the shared pass."""
        if self.rows is None:
            return self.direction / directions
        whole, rest = divmod(directions, self.rows)
        total = whole * self.rows**2 * self.frame
        if rest:
            total += rest**2 * (self.frame + self.direction * (1 / rest - 1 / self.rows))
        return total / directions**2

    def relative(self, directions: int, passes: int) -> float:
        """Returns V / |g|² for R directions in each of M shared passes; R is 0 where nothing is drawn."""
        within = self.within(directions) if directions else 0.0
        return (self.between + within) / passes / self.gradient


def cosine_of(relative: float) -> float:
    """Returns the cosine to the true gradient of an estimate whose variance is V / |g|², 1 / √(1 + V / |g|²)."""
    cosine: float = (1 + relative) ** -0.5
    return cosine
