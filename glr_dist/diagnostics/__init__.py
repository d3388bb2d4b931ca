"""Quality and cost of the gradient estimates: against K and M, or over a grid of noise scales and K."""

from __future__ import annotations

from glr_dist.diagnostics.diagnosis import Diagnosis, diagnose
from glr_dist.diagnostics.grid import Grid, diagnose_grid

__all__ = ["Diagnosis", "Grid", "diagnose", "diagnose_grid"]
