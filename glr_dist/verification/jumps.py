"""Jumps: parameters whose effect on the logits autograd does not see.

On a path θ(t) = θ + t d, 0 ≤ t ≤ 1, logits that are continuous in θ change by the integral of their derivative,

    z(θ(1)) - z(θ(0)) = ∫ ∂z/∂θ d dt,

whatever kinks they have. A parameter that acts through a jump (a norm's weight before `sign`, a `round`, a comparison)
changes the logits by more or less than that. The logits of all sites are compared in one pass, since each segment
starts from the recorded noisy logits of the sites before it.

Shapes: P probes u [P, n, *S] of each site, T nodes on the path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from glr_dist.estimators import Step
from glr_dist.rules import RULES
from glr_dist.sites import Site
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import Tree

PROBES = 4
TOLERANCE = 0.03  # of the change
_NODES = (8, 64)  # on the path: more of them tell a kink or a steep slope, which they resolve, from a jump
_HALVINGS = 8  # of a path that they do not resolve
_PIECE_TOLERANCE = 0.1  # of the change over the shortest piece
_LENGTHS = (0.5, 0.05, 2.0, 8.0)  # of the path, relative to the parameters


def suspects(step: Step, site: Site) -> tuple[str, ...]:
    """Returns the owned parameters whose effect on the logits is not known from the layer's type alone."""
    if type(site.module) not in RULES or site.name in step.network.altered:
        return site.owned
    names = {id(parameter): name for name, parameter in step.network.parameters.items()}
    own = {names.get(id(parameter)) for parameter in site.module.parameters(recurse=False)}
    return tuple(name for name in site.owned if name not in own or name in site.upstream)


def hidden_jump(
    step: Step, x: Tree, v: Mapping[str, Tensor], statistics: dict[str, Tensor]
) -> tuple[Site, str, float, float] | None:
    """Returns a site and an owned parameter that acts on its logits through a jump, or None.

    Args:
        step: the step; its network is prepared.
        x: inputs of a few examples [n, …].
        v: the noisy logits of each site in that pass.
        statistics: those of its batch norms, which are constants.

    Returns:
        (site, parameter, size of the change of the logits, size of what autograd accounts for).
    """
    paths = {site.name: names for site in step.network.sites if (names := suspects(step, site))}
    if not paths:
        return None
    found = dict.fromkeys(paths, _Mismatch(0.0, 0.0, 0.0))
    for nodes in _NODES:
        found = _mismatches(step, x, v, statistics, {name: paths[name] for name in found}, nodes)
    for name, mismatch in found.items():
        if not _persists(step, x, v, statistics, name, paths[name], mismatch.length):
            continue
        alone = {
            parameter: _mismatches(step, x, v, statistics, {name: (parameter,)}, _NODES[-1]).get(name)
            for parameter in paths[name]
        }
        worst = max(paths[name], key=lambda parameter: _share(alone[parameter]))
        change, integral, _ = alone[worst] or mismatch
        return step.network.by_name[name], worst, change, integral
    return None


def _persists(
    step: Step,
    x: Tree,
    v: Mapping[str, Tensor],
    statistics: dict[str, Tensor],
    site: str,
    names: Sequence[str],
    length: float,
) -> bool:
    """True if a mismatch stays where the path is halved again and again, as that of a jump does."""
    directions = _directions(step, names, length)

    def mismatch(piece: tuple[float, float], nodes: int) -> tuple[float, float]:
        """Returns the size of the mismatch over a piece of the path, and that of the greater side."""
        with _plain_embeddings(step.network.model):
            change, integral = _changes(step, x, v, statistics, {site: names}, directions, nodes, piece)[site]
        return (change - integral).norm().item(), max(change.norm().item(), integral.norm().item())

    first, last = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (first + last) / 2
        left, right = (first, middle), (middle, last)
        first, last = max(left, right, key=lambda piece: mismatch(piece, _NODES[0])[0])
    wrong, size = mismatch((first, last), _NODES[-1])
    return wrong > _PIECE_TOLERANCE * size


def reaches_around(step: Step, x: Tree, v: Mapping[str, Tensor], statistics: dict[str, Tensor]) -> str | None:
    """Returns a parameter that changes the outputs although the noisy logits of all sites are held, or None.

    Autograd shows such a parameter unless it acts through a jump.
    """

    def outputs() -> Tensor:
        return step.network.run(x, lambda name, _, z: v[name], step.uniforms(0, 0), statistics=statistics)

    before, parameters = outputs(), step.network.parameters
    for names in [list(parameters), *([name] for name in parameters)]:
        with _moved(step, _directions(step, names, _LENGTHS[0]), 1.0):
            same = torch.equal(outputs(), before)
        if same and len(names) == len(parameters):
            return None
        if not same and len(names) == 1:
            return names[0]
    return None


class _Mismatch(NamedTuple):
    """Sizes of the change of a site's logits and of the integral of their derivative, and the length of the path."""

    change: float
    integral: float
    length: float


def _share(mismatch: _Mismatch | None) -> float:
    return 0.0 if mismatch is None else abs(mismatch.change - mismatch.integral)


def _mismatches(
    step: Step,
    x: Tree,
    v: Mapping[str, Tensor],
    statistics: dict[str, Tensor],
    paths: Mapping[str, Sequence[str]],
    nodes: int,
) -> dict[str, _Mismatch]:
    """Returns the sites whose logits do not change by the integral of their derivative."""
    found: dict[str, _Mismatch] = {}
    left = dict(paths)
    for length in _LENGTHS:  # a shorter path where the logits are not finite, a longer one where they do not change
        if not left:
            break
        moving = list(dict.fromkeys(name for names in left.values() for name in names))
        directions = _directions(step, moving, length)
        with _plain_embeddings(step.network.model):
            changes = _changes(step, x, v, statistics, left, directions, nodes)
        for site, (change, integral) in changes.items():
            if not (change.isfinite().all() and integral.isfinite().all()) or not (change.any() or integral.any()):
                continue
            size = max(change.norm().item(), integral.norm().item())
            if (change - integral).norm().item() > TOLERANCE * size:
                found[site] = _Mismatch(change.norm().item(), integral.norm().item(), length)
            del left[site]
    return found


def _changes(
    step: Step,
    x: Tree,
    v: Mapping[str, Tensor],
    statistics: dict[str, Tensor],
    paths: Mapping[str, Sequence[str]],
    directions: Mapping[str, Tensor],
    nodes: int,
    piece: tuple[float, float] = (0.0, 1.0),
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns by site ⟨u, z(θ(b)) - z(θ(a))⟩ and ∫ ⟨u, ∂z/∂θ d⟩ dt over a piece a ≤ t ≤ b of the path, each [P]."""
    parameters = step.network.parameters

    def logits() -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def visit(name: str, _: Tensor, z: Tensor) -> Tensor:
            seen[name] = z
            return v[name]

        step.network.run(x, visit, step.uniforms(0, 0), statistics=statistics)
        return seen

    first, last = piece
    with _moved(step, directions, first):
        start = logits()
    with _moved(step, directions, last):
        end = logits()
    probes = {}
    for name in paths:
        stream = generator(Key(step.seed, site=step.network.by_name[name].index, role=Role.VERIFICATION), step.device)
        shape = (PROBES, *start[name].shape)
        probes[name] = torch.randn(shape, generator=stream, dtype=start[name].dtype, device=step.device)
    change = {name: (probes[name] * (end[name] - start[name])).flatten(1).sum(1) for name in paths}
    integral = {name: torch.zeros_like(change[name]) for name in paths}
    places, weights = np.polynomial.legendre.leggauss(nodes)
    share = (last - first) / 2
    for place, weight in zip(first + share * (places + 1), share * weights, strict=True):
        with _moved(step, directions, place), torch.enable_grad():  # a backward pass reads the moved values too
            seen = logits()
            for name, owned in paths.items():
                leaves = [parameters[parameter] for parameter in owned]
                for p, probe in enumerate(probes[name]):
                    grads = torch.autograd.grad(seen[name], leaves, probe, retain_graph=True, allow_unused=True)
                    for parameter, grad in zip(owned, grads, strict=True):
                        if grad is not None:
                            slope = (grad.to_dense().conj() * directions[parameter]).sum()
                            integral[name][p] += weight * slope.real
    return {name: (change[name], integral[name]) for name in paths}


def _directions(step: Step, names: Sequence[str], length: float) -> dict[str, Tensor]:
    """Returns a random direction for each parameter, of `length` times its size."""
    found = {}
    for i, name in enumerate(names):
        parameter = step.network.parameters[name].data
        stream = generator(Key(step.seed, block=i, role=Role.VERIFICATION), parameter.device)
        size = parameter.abs().square().mean().sqrt()
        drawn = torch.randn(parameter.shape, generator=stream, dtype=parameter.dtype, device=parameter.device)
        found[name] = drawn * length * (size if size > 0 else 1.0)
    return found


@contextmanager
def _plain_embeddings(model: nn.Module) -> Iterator[None]:
    """Makes embeddings look up alone: they hold the padding's row constant and project others, both on purpose."""
    lookups = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    kept = [(module, module.padding_idx, module.max_norm) for module in lookups]
    try:
        for module in lookups:
            module.max_norm = None
            if isinstance(module, nn.Embedding):  # a bag leaves its padding out
                module.padding_idx = None
        yield
    finally:
        for module, padding_idx, max_norm in kept:
            module.padding_idx, module.max_norm = padding_idx, max_norm


@contextmanager
def _moved(step: Step, directions: Mapping[str, Tensor], t: float) -> Iterator[None]:
    """Moves parameters for the duration of the context; the stored values are not touched."""
    kept = {name: step.network.parameters[name].data for name in directions}
    try:
        for name, value in kept.items():
            step.network.parameters[name].data = value + t * directions[name]
        yield
    finally:
        for name, value in kept.items():
            step.network.parameters[name].data = value
