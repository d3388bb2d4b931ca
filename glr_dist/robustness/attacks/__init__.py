"""Adversarial attacks: small perturbations of a test image that change the predicted class."""

from __future__ import annotations

from collections.abc import Callable

from glr_dist.robustness.attacks.base import Adversarial, Attack, Exact, Target
from glr_dist.robustness.attacks.fgsm import FGSM
from glr_dist.robustness.attacks.lbfgs import LBFGS
from glr_dist.robustness.attacks.pgd import PGD
from glr_dist.robustness.attacks.random_sign import RandomSign
from glr_dist.robustness.attacks.square import Square
from glr_dist.robustness.attacks.torch_lbfgs import TorchLBFGS

__all__ = [
    "ATTACKS",
    "FGSM",
    "LBFGS",
    "PGD",
    "Adversarial",
    "Attack",
    "Exact",
    "RandomSign",
    "Square",
    "Target",
    "TorchLBFGS",
]

ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "lbfgs": LBFGS,
    "torch_lbfgs": TorchLBFGS,
    "square": Square,
    "random_sign": RandomSign,
}
