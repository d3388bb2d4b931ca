"""Modules beside torch's own: discontinuous activations, keyed dropout, the paper's networks; `opened`."""

from glr_dist.nn.activations import Heaviside, Sign, Staircase
from glr_dist.nn.dropout import AlphaDropout, ChannelAlphaDropout, ChannelDropout, Dropout, StochasticDepth
from glr_dist.nn.models import mlp
from glr_dist.nn.opening import opened
from glr_dist.registry import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "AlphaDropout",
    "ChannelAlphaDropout",
    "ChannelDropout",
    "Dropout",
    "Heaviside",
    "Sign",
    "Staircase",
    "StochasticDepth",
    "mlp",
    "opened",
]
