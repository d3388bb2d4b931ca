"""Modules beside torch's own: discontinuous activations, keyed dropout, the paper's networks."""

from glr_dist.nn.activations import Heaviside, Sign, Staircase
from glr_dist.nn.dropout import Dropout
from glr_dist.nn.models import mlp
from glr_dist.registry import ACTIVATIONS

__all__ = ["ACTIVATIONS", "Dropout", "Heaviside", "Sign", "Staircase", "mlp"]
