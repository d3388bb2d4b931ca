"""Certifies one block of images by intervals and programs, and attacks it. A pure function of its arguments.

Shapes: images x [n, C, H, W] in [0, 1], labels y [n], class scores [n, classes].
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from glr_dist.chain import Block
from glr_dist.data import Split
from glr_dist.errors import SiteError, ZeroGradientError
from glr_dist.execution.reproducible import reproducible
from glr_dist.glr import GLR
from glr_dist.input_gradient import shifted, spreads
from glr_dist.nn.activations import Heaviside
from glr_dist.robustness.attacks.pgd import PGD
from glr_dist.robustness.certificates.linf.boxes import Box, after, rounding
from glr_dist.robustness.certificates.linf.settings import LinfCertification
from glr_dist.robustness.certificates.linf.threshold_program import ThresholdNetwork, least_margin
from glr_dist.robustness.targets import LikelihoodRatio, WhiteBox
from glr_dist.streams import Key, Role

Proof = Literal["", "interval", "program"]
Breach = Literal["", "attack", "program"]


class Decision(NamedTuple):
    """Proof and breach of one image at one ε.

    Attributes:
        proof: what proves that the prediction does not change; empty if nothing does.
        breach: what found an image that changes it; empty if nothing did.
    """

    proof: Proof = ""
    breach: Breach = ""


class LinfVerdict(NamedTuple):
    """Results of one image.

    Attributes:
        label: the true class.
        predicted: the class of the unchanged image.
        decisions: one for each ε; empty if the prediction is wrong.
    """

    label: int
    predicted: int
    decisions: tuple[Decision, ...] = ()

    @classmethod
    def of(cls, label: int, predicted: int, decisions: list[list[Any]]) -> LinfVerdict:
        """Returns the verdict of an entry of a journal."""
        return cls(int(label), int(predicted), tuple(Decision(*each) for each in decisions))


@dataclass(frozen=True)
class LinfCertified:
    """Everything that the blocks of a certification share.

    Attributes:
        net: the network, in evaluation mode, prepared.
        exact: its chain in float64.
        attacked: the network as the attack sees it, for each of its noise scales; empty for autograd.
        images: the images that are certified.
        settings: the settings.
    """

    net: GLR
    exact: tuple[Block, ...]
    attacked: tuple[GLR, ...]
    images: Split
    settings: LinfCertification

    @classmethod
    def of(cls, net: GLR, images: Split, settings: LinfCertification) -> LinfCertified:
        """Prepares a network.

        Raises:
            SiteError: bounds of one of its modules are not known; names the module.
        """
        x = images.batch(slice(0, settings.block))[0]
        net.prepare(x[:2])
        exact = tuple(copy.deepcopy(net).double().network.blocks)
        box = Box.between(x[:1], x[:1], _unit(net))
        for name, module in exact:
            try:
                box = after(module, box)
            except SiteError as error:
                raise SiteError(f"'{name}': {error}, so the network has no L∞ certificate") from None
        smoothed: tuple[GLR, ...] = ()
        if settings.steps and net.noise is not None:
            adaptive, stds = settings.adaptive, spreads(net, x)
            smoothed = tuple(
                shifted(net, x, {n: each * s for n, s in stds.items()}, copies=adaptive.copies, passes=adaptive.passes)
                for each in adaptive.spreads
            )
        return cls(net, exact, smoothed, images, settings)

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.net.parameters()).device

    def copied(self) -> LinfCertified:
        """Returns a copy with its own networks for another thread."""
        net, exact, attacked = copy.deepcopy((self.net, self.exact, self.attacked))
        return replace(self, net=net, exact=exact, attacked=attacked)


def certify_linf_block(certified: LinfCertified, block: int) -> list[LinfVerdict]:
    """Returns the verdicts of one block of images."""
    settings = certified.settings
    first = block * settings.block
    x, y = certified.images.batch(slice(first, min(first + settings.block, len(certified.images))))
    with reproducible(), torch.no_grad():
        predicted = certified.net(x).argmax(1)
        decided = [_decisions(certified, x, y, eps, block) for eps in settings.eps]
    return [
        LinfVerdict(int(y[i]), int(predicted[i]), tuple(each[i] for each in decided) if predicted[i] == y[i] else ())
        for i in range(len(y))
    ]


def _decisions(certified: LinfCertified, x: Tensor, y: Tensor, eps: float, block: int) -> list[Decision]:
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    margins = _margins(certified, low, high, y)
    broken = _attacked(certified, x, y, eps, block)
    program = _threshold_network(certified, x)
    found = []
    for i in range(len(y)):
        if (margins[i] > 0).all():
            found.append(Decision("interval", "attack" if broken[i] else ""))
        elif broken[i] or program is None or int(certified.net(x[i : i + 1]).argmax()) != int(y[i]):
            found.append(Decision("", "attack" if broken[i] else ""))
        else:
            found.append(_solved(certified, program, low[i : i + 1], high[i : i + 1], int(y[i]), margins[i]))
    return found


def _margins(certified: LinfCertified, low: Tensor, high: Tensor, y: Tensor) -> Tensor:
    """Returns lower bounds [n, classes] of the margins of y over each other class; infinite for y itself."""
    box = Box.between(low, high, _unit(certified.net))
    *front, (_, head) = certified.exact
    for _, module in front:
        box = after(module, box)
    if type(head) is nn.Linear:  # margins are tighter than the difference of two intervals
        weight, error = head.weight, rounding(head, box)
        rows = weight[y][:, None] - weight[None]
        scores = nn.functional.linear(box.centre, weight, head.bias)
        spread = (rows.abs() * box.radius[:, None]).sum(2) + error + error.gather(1, y[:, None])
        margins = scores.gather(1, y[:, None]) - scores - spread
    else:
        box = after(head, box)
        margins = box.low.gather(1, y[:, None]) - box.high
    return margins.scatter(1, y[:, None], torch.inf)


def _attacked(certified: LinfCertified, x: Tensor, y: Tensor, eps: float, block: int) -> Tensor:
    """Returns whether L∞ PGD changes the prediction [n]."""
    settings, net = certified.settings, certified.net
    broken = torch.zeros_like(y, dtype=torch.bool)
    if not settings.steps:
        return broken
    pgd = PGD(eps, settings.steps)
    key = Key(settings.seed, step=settings.eps.index(eps), example_block=block, role=Role.ATTACK)
    for number in range(max(1, len(certified.attacked))):
        left = torch.arange(len(y), device=y.device)[~broken]
        if not len(left):
            break
        here = key._replace(shared_pass=number)
        seed = int.from_bytes(here.digest(7), "little")
        target = LikelihoodRatio(certified.attacked[number], net, seed) if certified.attacked else WhiteBox(net)
        try:
            found = pgd(target, x[left], y[left], here).images
        except ZeroGradientError:
            continue
        broken[left] = net(found).argmax(1) != y[left]
    return broken


def _threshold_network(certified: LinfCertified, x: Tensor) -> ThresholdNetwork | None:
    """Returns the weights of a network of one threshold layer; None for another one, or without programs."""
    modules = [module for _, module in certified.exact if not isinstance(module, nn.Identity)]
    if not certified.settings.nodes or len(modules) < 3 or certified.device.type != "cpu":
        return None
    *front, inner, step, outer = modules
    if not (type(inner) is type(outer) is nn.Linear and type(step) is Heaviside):
        return None
    if any(not isinstance(module, nn.Flatten) for module in front):
        return None
    return ThresholdNetwork(*(each for layer in (inner, outer) for each in _arrays(layer)))


def _arrays(layer: nn.Linear) -> tuple[Any, Any]:
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    return layer.weight.numpy(), bias.double().numpy()


def _solved(
    certified: LinfCertified, program: ThresholdNetwork, low: Tensor, high: Tensor, label: int, margins: Tensor
) -> Decision:
    """Decides one image [1, C, H, W] by a program for each class that the intervals leave open."""
    net = certified.net
    box = Box.between(low.flatten(1), high.flatten(1), _unit(net))
    linears = [module for _, module in certified.exact if isinstance(module, nn.Linear)]
    ones = torch.ones(1, linears[1].in_features, dtype=torch.float64)
    error = rounding(linears[1], Box(ones / 2, ones / 2, box.unit))[0]
    options: dict[str, Any] = {
        "hidden_rounding": rounding(linears[0], box)[0].numpy(),
        "nodes": certified.settings.nodes,
    }
    least, most = (end.double().flatten().numpy() for end in (low, high))
    open_classes = []
    for other in torch.nonzero(margins <= 0).flatten().tolist():
        options["margin_rounding"] = float(error[label] + error[other])
        if least_margin(program, least, most, label, other, **options)[0] <= 0:
            open_classes.append(other)
    for other in open_classes:
        at = least_margin(program, least, most, label, other, **options, strict=True)[1]
        if at is not None:
            image = torch.from_numpy(np.asarray(at)).to(low.dtype).view_as(low).clamp(low, high)
            if int(net(image).argmax()) != label:
                return Decision("", "program")
    return Decision("" if open_classes else "program")


def _unit(net: GLR) -> float:
    return torch.finfo(net.network.dtype).eps / 2
