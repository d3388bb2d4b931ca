"""What one piece of an evaluation computes: one block of test images under one condition. Needs no Ray.

Shapes: n images of a block, x [n, C, H, W] in [0, 1], y [n], class scores [n, classes].
"""

from __future__ import annotations

import copy
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from glr_dist.data import Split
from glr_dist.errors import NoGradientError
from glr_dist.execution.inline import one_thread
from glr_dist.glr import GLR
from glr_dist.noise import Key, Role
from glr_dist.robustness.attacks import ATTACKS, Target
from glr_dist.robustness.attacks.base import lengths
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.corruptions import corrupt
from glr_dist.robustness.outcome import SAMPLES, Outcome
from glr_dist.robustness.suite import Suite
from glr_dist.robustness.targets import LikelihoodRatio, Scores, WhiteBox


@dataclass(frozen=True)
class Subject:
    """A network to be judged.

    Attributes:
        net: the network, in evaluation mode.
        images: the test images.
        shifted: the network with its input as a parameter, or why there is none; None where it has no noise.
        surrogate: what transfer attacks are made on.
        baseline: what its corruption errors are compared with.
    """

    net: GLR
    images: Split
    shifted: GLR | str | None
    surrogate: GLR | None
    baseline: GLR | None


class Evaluator:
    """Computes outcomes; the same one wherever and in whatever order.

    Args:
        subjects: the networks.
        suite: what is done to them.
    """

    def __init__(self, subjects: Sequence[Subject], suite: Suite) -> None:
        self.subjects, self.suite = subjects, suite

    def copied(self) -> Evaluator:
        """Another one for another thread: a module must not run in two at once."""
        return Evaluator([copy.deepcopy(subject) for subject in self.subjects], self.suite)

    def outcome(self, subject: int, condition: Condition, block: int) -> Outcome:
        """What becomes of one block of a subject's test images."""
        chosen = self.subjects[subject]
        first = block * self.suite.block
        rows = slice(first, min(first + self.suite.block, condition.examples))
        x, y = chosen.images.batch(rows)
        with one_thread(), torch.no_grad():
            try:
                return self._outcome(chosen, condition, block, x, y)
            except NoGradientError as error:
                return Outcome(reason=str(error))

    def _outcome(self, subject: Subject, condition: Condition, block: int, x: Tensor, y: Tensor) -> Outcome:
        key = Key(self.suite.seed, step=zlib.crc32(condition.label.encode()), examples=block)
        changed, tested, baseline = x, torch.ones_like(y, dtype=torch.bool), ""
        if condition.attack is not None:
            target = self._target(subject, condition, key)
            attack = ATTACKS[condition.name](**condition.parameters())
            changed, tested = attack(target, x, y, key._replace(role=Role.ATTACK))
        elif condition.severity is not None:
            constants = self.suite.corruptions.constants
            changed = corrupt(
                condition.name, x, condition.severity, constants=constants, seed=self.suite.seed, block=block
            )
            assert subject.baseline is not None
            baseline = _bits(subject.baseline(changed).argmax(1) == y)
        predictions = self._predictions(subject.net, changed, key)
        least = condition.attack is not None and condition.eps is None
        return Outcome(
            correct=_bits(predictions == y),
            tested=_bits(tested),
            baseline=baseline,
            lengths=tuple(lengths(changed - x).tolist()) if least else (),
            predictions=tuple(predictions[:SAMPLES].tolist()) if block == 0 else (),
            images=_encoded(changed[:SAMPLES]) if block == 0 else "",
        )

    def _target(self, subject: Subject, condition: Condition, key: Key) -> Target:
        """What the attack sees, by its threat model."""
        if condition.threat == "transfer":
            assert subject.surrogate is not None
            return WhiteBox(subject.surrogate)
        net = subject.net
        noisy = self.suite.inference.votes > 0
        network: Scores = _Noisy(net, key._replace(block=1)) if noisy else net
        if condition.threat == "adaptive" and subject.shifted is not None:
            if isinstance(subject.shifted, str):
                raise NoGradientError(subject.shifted)
            seed = int.from_bytes(key._replace(role=Role.ATTACK).digest(7), "little")
            return LikelihoodRatio(subject.shifted, network, seed)
        return WhiteBox(network, self.suite.expectation.draws if noisy else 1)

    def _predictions(self, net: GLR, x: Tensor, key: Key) -> Tensor:
        """The classes that the network predicts [n]: without noise, or by the majority of noisy passes."""
        votes = self.suite.inference.votes
        if not votes:
            classes: Tensor = net(x).argmax(1)
            return classes
        noisy = _Noisy(net, key)
        passes = [noisy(x) for _ in range(votes)]
        return torch.stack([one_hot(scores.argmax(1), scores.shape[1]) for scores in passes]).sum(0).argmax(1)


class _Noisy:
    """A network that draws noise at each call, from streams that the number of the call names."""

    def __init__(self, net: GLR, key: Key) -> None:
        self._net, self._key, self._calls = net, key._replace(role=Role.INFERENCE), 0

    def __call__(self, x: Tensor) -> Tensor:
        self._calls += 1
        return self._net.noisy(x, self._key._replace(shared_pass=self._calls))


def _bits(values: Tensor) -> str:
    return "".join("01"[value] for value in values.tolist())


def _encoded(images: Tensor) -> str:
    levels = (images * 255).round().to(torch.uint8).cpu()
    return b64encode(levels.numpy().tobytes()).decode()
