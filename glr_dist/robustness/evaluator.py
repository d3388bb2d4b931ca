"""What one piece of an evaluation computes: one block of test images under one condition. Needs no Ray.

Shapes: n images of a block, x [n, C, H, W] in [0, 1], y [n], class scores [n, classes].
"""

from __future__ import annotations

import copy
import zlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from glr_dist.data import Split
from glr_dist.errors import NoGradientError, ZeroGradientError
from glr_dist.execution.inline import one_thread
from glr_dist.glr import GLR
from glr_dist.robustness.attacks import ATTACKS, Adversarial, Target
from glr_dist.robustness.attacks.base import lengths
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.corruptions import corrupt
from glr_dist.robustness.outcome import SAMPLES, Outcome
from glr_dist.robustness.suite import Suite
from glr_dist.robustness.targets import Averaged, LikelihoodRatio, Scores, WhiteBox
from glr_dist.streams import Key, Role


@dataclass(frozen=True)
class Subject:
    """A network to be judged.

    Attributes:
        net: the network, in evaluation mode.
        images: the test images.
        smoothed: the network with its input as a parameter, for each width of the noise that the adaptive threat model
            tries; none where it has no noise, and autograd serves.
        refused: why the adaptive threat model has nothing to estimate.
        surrogate: what transfer attacks are made on.
        baseline: what its corruption errors are compared with.
    """

    net: GLR
    images: Split
    smoothed: tuple[GLR, ...] = ()
    refused: str = ""
    surrogate: GLR | None = None
    baseline: GLR | None = None


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
        key = Key(self.suite.seed, step=zlib.crc32(condition.label.encode()), example_block=block)
        changed, tested, baseline = x, torch.ones_like(y, dtype=torch.bool), ""
        if condition.attack is not None:
            changed, tested = self._attacked(subject, condition, key, x, y)
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

    def _attacked(self, subject: Subject, condition: Condition, key: Key, x: Tensor, y: Tensor) -> Adversarial:
        """What the attack finds, by its threat model; of several targets, the first that is fooled."""
        parameters = condition.parameters()
        if condition.name in ("pgd", "square"):
            parameters["stop"] = condition.threat != "transfer" and not self.suite.inference.votes
        attack = ATTACKS[condition.name](**parameters)
        images, tested = x.clone(), torch.zeros_like(y, dtype=torch.bool)
        left = torch.arange(len(y), device=y.device)
        for number, target in enumerate(self._targets(subject, condition, key)):
            try:
                found = attack(target, x[left], y[left], key._replace(role=Role.ATTACK, shared_pass=number))
            except ZeroGradientError:  # of these examples: how many there are of them is judged over all blocks
                continue
            images[left], tested[left] = found.images, tested[left] | found.tested
            left = left[target.scores(found.images).argmax(1) == y[left]]
            if not len(left):
                break
        return Adversarial(images, tested)

    def _targets(self, subject: Subject, condition: Condition, key: Key) -> Iterator[Target]:
        """What the attack sees."""
        net, inference = subject.net, self.suite.inference
        if condition.threat == "transfer":
            assert subject.surrogate is not None
            yield WhiteBox(subject.surrogate)
            return
        network: Scores = net
        if inference.votes:
            if condition.name == "lbfgs":
                raise NoGradientError("predictions by vote are random where one vote decides, and there it would stop")
            network = Averaged(net, key._replace(role=Role.INFERENCE, block=1), inference.draws)
        if condition.threat != "adaptive" or net.noise is None:
            yield WhiteBox(network)
            return
        if subject.refused:
            raise NoGradientError(subject.refused)
        for number, smoothed in enumerate(subject.smoothed):
            seed = int.from_bytes(key._replace(role=Role.ATTACK, block=number).digest(7), "little")
            yield LikelihoodRatio(smoothed, network, seed)

    def _predictions(self, net: GLR, x: Tensor, key: Key) -> Tensor:
        """The classes that the network predicts [n]: without noise, or by the majority of noisy passes."""
        votes = self.suite.inference.votes
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
