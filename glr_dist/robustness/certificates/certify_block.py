"""Counts the classes of the draws of a block of images, and attacks them. A pure function of its arguments; no Ray.

Shapes: x one image [C, H, W]; class scores [n, classes].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glr_dist.data import Split
from glr_dist.errors import ZeroGradientError
from glr_dist.execution.reproducible import reproducible
from glr_dist.losses import Loss
from glr_dist.robustness.attacks.pgd import PGD
from glr_dist.robustness.certificates.settings import Certification
from glr_dist.robustness.certificates.smoothing import Smoothing
from glr_dist.robustness.certificates.verdict import Attacked, Verdict
from glr_dist.streams import Key, Role

# What a stream is for: `Key.block`. Each radius of the attack has two: + 2 · its index.
_CHOOSE, _COUNT, _ATTACK, _RECHECK = range(4)


@dataclass(frozen=True)
class Certified:
    """Everything that the blocks of a certification share.

    Attributes:
        smoothing: the random classifier.
        images: the images that are certified.
        settings: the settings.
    """

    smoothing: Smoothing
    images: Split
    settings: Certification

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.smoothing.net.parameters()).device

    def copied(self) -> Certified:
        """Returns a copy with its own network for another thread."""
        return replace(self, smoothing=self.smoothing.copied())


def certify_block(certified: Certified, block: int) -> list[Verdict]:
    """Returns the verdicts of one block of images."""
    settings = certified.settings
    first = block * settings.block
    x, y = certified.images.batch(slice(first, min(first + settings.block, len(certified.images))))
    with reproducible(), torch.no_grad():
        return [_verdict(certified, first + i, x[i], y[i]) for i in range(len(y))]


def _verdict(certified: Certified, number: int, x: Tensor, y: Tensor) -> Verdict:
    """Returns the verdict of one image; every stream is named by the image's number."""
    smoothing, settings = certified.smoothing, certified.settings
    key = Key(settings.seed, example_block=number, role=Role.CERTIFICATE)
    predicted = int(smoothing.counts(x, key._replace(block=_CHOOSE), settings.n0).argmax())
    successes = int(smoothing.counts(x, key._replace(block=_COUNT), settings.n)[predicted])
    verdict = Verdict(int(y), predicted, successes)
    if number >= settings.attack.examples or predicted != int(y):
        return verdict
    return verdict._replace(attacked=tuple(_attacked(certified, key, x, y, i) for i in range(len(settings.attack.eps))))


def _attacked(certified: Certified, key: Key, x: Tensor, y: Tensor, radius: int) -> Attacked:
    """Attacks one image within a radius, and counts the classes there in draws of their own."""
    smoothing, settings = certified.smoothing, certified.settings
    attack = settings.attack
    pgd = PGD(attack.eps[radius], attack.steps, attack.step_size, norm="l2", random_start=False, stop=False)
    target = _Target(smoothing, key._replace(block=_ATTACK + 2 * radius), attack.draws)
    try:
        found = pgd(target, x[None], y[None], key).images[0]
    except ZeroGradientError:  # all draws have one loss; the report counts the attacks that went nowhere
        found = x
    counts = smoothing.counts(found, key._replace(block=_RECHECK + 2 * radius), settings.n)
    top = int(counts.argmax())
    distance = (found.double() - x.double()).norm().item()
    return Attacked(distance, top, int(counts[top]), int(counts[int(y)]))


class _Target:
    """The smoothed classifier of one image as an attack sees it; each gradient has new draws."""

    def __init__(self, smoothing: Smoothing, key: Key, draws: int) -> None:
        self._smoothing, self._key, self._draws = smoothing, key, draws

    def scores(self, x: Tensor) -> Tensor:
        return torch.stack([self._smoothing.counts(each, self._next(), self._draws) for each in x])

    def gradients(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        return self._smoothing.gradient(x, y, loss, [self._next() for _ in x], self._draws)

    def _next(self) -> Key:
        self._key = self._key._replace(step=self._key.step + 1)
        return self._key
