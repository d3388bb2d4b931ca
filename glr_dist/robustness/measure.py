"""Measures one block of test images under one condition. Needs no Ray.

Shapes: n images of a block, x [n, C, H, W] in [0, 1], y [n], class scores [n, classes].
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Iterator
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from glr_dist.errors import NoGradientError, ZeroGradientError
from glr_dist.execution.reproducible import reproducible
from glr_dist.glr import GLR
from glr_dist.robustness.attacks import ATTACKS, Target
from glr_dist.robustness.attacks.base import l2_norms
from glr_dist.robustness.conditions import Attacked, Clean, Condition, Corrupted
from glr_dist.robustness.corruptions import corrupt
from glr_dist.robustness.measurement import SAMPLES, Measurement
from glr_dist.robustness.subject import Subject
from glr_dist.robustness.suite import Suite
from glr_dist.robustness.targets import Averaged, LikelihoodRatio, Scores, WhiteBox
from glr_dist.streams import Key, Role


def measure(subject: Subject, suite: Suite, condition: Condition, block: int) -> Measurement:
    """Measures one block of a subject's images: a pure function of its arguments.

    Args:
        subject: the subject.
        suite: the suite that the condition belongs to.
        condition: the condition.
        block: number of the block; blocks have `suite.block` images.
    """
    first = block * suite.block
    x, y = subject.images.batch(slice(first, min(first + suite.block, condition.examples)))
    key = Key(suite.seed, step=zlib.crc32(condition.label.encode()), example_block=block)
    with reproducible(), torch.no_grad():
        try:
            changed = _kept(condition, subject, suite, key, x, y)
        except NoGradientError as error:
            return Measurement(reason=str(error))
        predictions = _predictions(subject.net, suite, changed.images, key)
    return Measurement(
        correct=_bits(predictions == y),
        tested=_bits(torch.ones_like(y) if changed.tested is None else changed.tested),
        baseline=changed.baseline,
        l2_norms=changed.l2_norms,
        predictions=tuple(predictions[:SAMPLES].tolist()) if block == 0 else (),
        images=_encoded(changed.images[:SAMPLES]) if block == 0 else "",
    )


class _Changed(NamedTuple):
    """Images under a condition; the other fields are those of `Measurement`, `tested` None for all."""

    images: Tensor
    tested: Tensor | None = None
    baseline: str = ""
    l2_norms: tuple[float, ...] = ()


def _kept(condition: Condition, subject: Subject, suite: Suite, key: Key, x: Tensor, y: Tensor) -> _Changed:
    """Applies a condition to a block, or takes the images from an earlier network's evaluation if they are the same.

    Those of a transfer attack do not depend on the network. Only attacks that minimise the perturbation are kept: they
    take many times as long as all others.
    """
    same = isinstance(condition, Attacked) and condition.threat == "transfer" and condition.eps is None
    if subject.kept is None or not same:
        return _changed(condition, subject, suite, key, x, y)
    place = condition.label, key.example_block
    if place not in subject.kept:
        subject.kept[place] = _changed(condition, subject, suite, key, x, y)
    found: _Changed = subject.kept[place]
    return found


@singledispatch
def _changed(condition: Condition, subject: Subject, suite: Suite, key: Key, x: Tensor, y: Tensor) -> _Changed:
    """Applies a condition to a block of images; one implementation per kind of condition."""
    raise TypeError(f"{type(condition).__name__}: no function for this kind of condition is registered")


@_changed.register
def _(condition: Clean, subject: Subject, suite: Suite, key: Key, x: Tensor, y: Tensor) -> _Changed:
    return _Changed(x)


@_changed.register
def _(condition: Corrupted, subject: Subject, suite: Suite, key: Key, x: Tensor, y: Tensor) -> _Changed:
    constants, block = suite.corruptions.constants, key.example_block
    images = corrupt(condition.name, x, condition.severity, constants=constants, seed=suite.seed, block=block)
    assert subject.baseline is not None
    return _Changed(images, baseline=_bits(subject.baseline(images).argmax(1) == y))


@_changed.register
def _(condition: Attacked, subject: Subject, suite: Suite, key: Key, x: Tensor, y: Tensor) -> _Changed:
    """Attacks the targets of the threat model in turn; an image keeps the first change of prediction."""
    parameters = condition.parameters()
    if condition.attack.name in ("pgd", "square"):
        parameters["stop"] = condition.threat != "transfer" and not suite.inference.votes
    attack = ATTACKS[condition.attack.name](**parameters)
    images, tested = x.clone(), torch.zeros_like(y, dtype=torch.bool)
    left = torch.arange(len(y), device=y.device)
    for number, target in enumerate(_targets(condition, subject, suite, key)):
        try:
            found = attack(target, x[left], y[left], key._replace(role=Role.ATTACK, shared_pass=number))
        except ZeroGradientError:  # in this block; the report judges their number over all blocks
            continue
        images[left], tested[left] = found.images, tested[left] | found.tested
        left = left[target.scores(found.images).argmax(1) == y[left]]
        if not len(left):
            break
    norms = tuple(l2_norms(images - x).tolist()) if condition.eps is None else ()
    return _Changed(images, tested, l2_norms=norms)


def _targets(condition: Attacked, subject: Subject, suite: Suite, key: Key) -> Iterator[Target]:
    """Yields the targets that the threat model gives the attack, in the order in which it tries them."""
    net, inference = subject.net, suite.inference
    if condition.threat == "transfer":
        assert subject.surrogate is not None
        yield WhiteBox(subject.surrogate)
        return
    network: Scores = net
    if inference.votes:
        if condition.attack.name.endswith("lbfgs"):
            raise NoGradientError("L-BFGS stops at the decision boundary, where predictions by vote are random")
        network = Averaged(net, key._replace(role=Role.INFERENCE, block=1), inference.draws)
    if condition.threat != "adaptive" or net.noise is None:
        yield WhiteBox(network)
        return
    if subject.untestable:
        raise NoGradientError(subject.untestable)
    for number, smoothed in enumerate(subject.smoothed):
        seed = int.from_bytes(key._replace(role=Role.ATTACK, block=number).digest(7), "little")
        yield LikelihoodRatio(smoothed, network, seed)


def _predictions(net: GLR, suite: Suite, x: Tensor, key: Key) -> Tensor:
    """Returns the predicted classes [n]: noise-free, or the majority vote of noisy passes."""
    votes = suite.inference.votes
    if not votes:
        classes: Tensor = net(x).argmax(1)
        return classes
    key = key._replace(role=Role.INFERENCE)
    passes = [net.noisy(x, key._replace(shared_pass=vote)) for vote in range(votes)]
    return torch.stack([one_hot(scores.argmax(1), scores.shape[1]) for scores in passes]).sum(0).argmax(1)


def _bits(values: Tensor) -> str:
    return "".join("01"[value] for value in values.tolist())


def _encoded(images: Tensor) -> str:
    levels = (images * 255).round().to(torch.uint8).cpu()
    return b64encode(levels.numpy().tobytes()).decode()
