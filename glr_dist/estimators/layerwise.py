"""`layerwise`: one site redraws its noise K times, all other sites have none (Jiang et al., ICLR 2024, "ULR").

Its objective differs from site to site: J_l, the expected loss with noise at site l alone.
"""

from glr_dist.estimators.redraw import Redraw


class Layerwise(Redraw):
    """Estimates ∂J_l at each site l, from one noise-free shared pass."""

    noisy = False
