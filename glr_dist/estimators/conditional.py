"""`conditional`: one site redraws its noise K times, all other sites keep the noise of the shared pass.

By the tower rule δ_l = (1/σ_l) E[ E[L s(ε_l) | the noise of all other sites] ] is the gradient of J itself: the
estimate is unbiased, and the common random numbers of the other sites cancel from its differences.
"""

from glr_dist.estimators.redraw import Redraw


class Conditional(Redraw):
    """Estimates ∂J, with noise at every site: unbiased for any K and M."""

    noisy = True
