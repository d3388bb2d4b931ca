"""Modules beside torch's own: discontinuous activations, keyed dropout, the paper's networks; `opened` and `fixed`."""

from glr_dist.nn.activations import Heaviside, Sign, Staircase
from glr_dist.nn.batch_norm import SharedBatchNorm
from glr_dist.nn.dropout import AlphaDropout, ChannelAlphaDropout, ChannelDropout, Dropout, StochasticDepth
from glr_dist.nn.fixing import Change, Changes, fixed
from glr_dist.nn.models import mlp
from glr_dist.nn.opening import opened
from glr_dist.registry import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "AlphaDropout",
    "Change",
    "Changes",
    "ChannelAlphaDropout",
    "ChannelDropout",
    "Dropout",
    "Heaviside",
    "SharedBatchNorm",
    "Sign",
    "Staircase",
    "StochasticDepth",
    "fixed",
    "mlp",
    "opened",
]
