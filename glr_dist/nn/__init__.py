"""Modules beside torch's own: discontinuous activations, keyed dropout, black boxes, noisy weights; networks.

`opened`, `fixed` and `noisy_weights` return changed copies of a model.
"""

from glr_dist.nn.activations import Heaviside, Sign, Staircase
from glr_dist.nn.batch_norm import SharedBatchNorm
from glr_dist.nn.black_box import BlackBox
from glr_dist.nn.codebook import vq_mlp
from glr_dist.nn.convolutional import lenet5, resnet8, vgg8
from glr_dist.nn.dropout import AlphaDropout, ChannelAlphaDropout, ChannelDropout, Dropout, StochasticDepth
from glr_dist.nn.experts import mixture_of_experts
from glr_dist.nn.fixing import Change, Changes, fixed
from glr_dist.nn.gru import gru
from glr_dist.nn.models import mlp
from glr_dist.nn.noisy_weights import NoisyWeights, noisy_weights
from glr_dist.nn.opening import opened
from glr_dist.nn.quantised import Quantise, quantised_mlp
from glr_dist.nn.spiking import LIF, spiking_cnn, spiking_mlp
from glr_dist.nn.vit import vit
from glr_dist.registry import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "AlphaDropout",
    "BlackBox",
    "Change",
    "Changes",
    "ChannelAlphaDropout",
    "ChannelDropout",
    "Dropout",
    "Heaviside",
    "SharedBatchNorm",
    "LIF",
    "NoisyWeights",
    "Quantise",
    "Sign",
    "Staircase",
    "StochasticDepth",
    "fixed",
    "gru",
    "lenet5",
    "mixture_of_experts",
    "mlp",
    "noisy_weights",
    "opened",
    "quantised_mlp",
    "resnet8",
    "spiking_cnn",
    "spiking_mlp",
    "vgg8",
    "vit",
    "vq_mlp",
]
