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

import numpy as np
import torch
from torch import Tensor

from glr_dist.estimators import Step
from glr_dist.rules import RULES
from glr_dist.sites import Site
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import Tree

PROBES = 4
TOLERANCE = 0.03  # of the change
_NODES = (8, 64, 512)  # on the path: more of them tell a kink or a steep slope, which they resolve, from a jump
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
    found: dict[str, tuple[float, float]] = dict.fromkeys(paths, (0.0, 0.0))
    for nodes in _NODES:
        found = _mismatches(step, x, v, statistics, {name: paths[name] for name in found}, nodes)
    for name in found:
        alone = {
            parameter: _mismatches(step, x, v, statistics, {name: (parameter,)}, _NODES[1]).get(name)
            for parameter in paths[name]
        }
        worst = max(paths[name], key=lambda parameter: _share(alone[parameter]))
        change, integral = alone[worst] or found[name]
        return step.network.by_name[name], worst, change, integral
    return None


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


def _share(sizes: tuple[float, float] | None) -> float:
    return 0.0 if sizes is None else abs(sizes[0] - sizes[1])


def _mismatches(
    step: Step,
    x: Tree,
    v: Mapping[str, Tensor],
    statistics: dict[str, Tensor],
    paths: Mapping[str, Sequence[str]],
    nodes: int,
) -> dict[str, tuple[float, float]]:
    """Returns, for the sites whose logits do not change by the integral of their derivative, the sizes of both."""
    found: dict[str, tuple[float, float]] = {}
    left = dict(paths)
    for length in _LENGTHS:  # a shorter path where the logits are not finite, a longer one where they do not change
        if not left:
            break
        moving = list(dict.fromkeys(name for names in left.values() for name in names))
        directions = _directions(step, moving, length)
        for site, (change, integral) in _changes(step, x, v, statistics, left, directions, nodes).items():
            if not (change.isfinite().all() and integral.isfinite().all()) or not (change.any() or integral.any()):
                continue
            size = max(change.norm().item(), integral.norm().item())
            if (change - integral).norm().item() > TOLERANCE * size:
                found[site] = (change.norm().item(), integral.norm().item())
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
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns by site ⟨u, z(θ(1)) - z(θ(0))⟩ and ∫ ⟨u, ∂z/∂θ d⟩ dt, each [P]."""
    parameters = step.network.parameters

    def logits() -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def visit(name: str, _: Tensor, z: Tensor) -> Tensor:
            seen[name] = z
            return v[name]

        step.network.run(x, visit, step.uniforms(0, 0), statistics=statistics)
        return seen

    start = logits()
    with _moved(step, directions, 1.0):
        end = logits()
    probes = {}
    for name in paths:
        stream = generator(Key(step.seed, site=step.network.by_name[name].index, role=Role.VERIFICATION), step.device)
        shape = (PROBES, *start[name].shape)
        probes[name] = torch.randn(shape, generator=stream, dtype=start[name].dtype, device=step.device)
    change = {name: (probes[name] * (end[name] - start[name])).flatten(1).sum(1) for name in paths}
    integral = {name: torch.zeros_like(change[name]) for name in paths}
    places, weights = np.polynomial.legendre.leggauss(nodes)
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        with _moved(step, directions, place), torch.enable_grad():  # a backward pass reads the moved values too
            seen = logits()
            for name, owned in paths.items():
                leaves = [parameters[parameter] for parameter in owned]
                for p, probe in enumerate(probes[name]):
                    grads = torch.autograd.grad(seen[name], leaves, probe, retain_graph=True, allow_unused=True)
                    for parameter, grad in zip(owned, grads, strict=True):
                        if grad is not None:
                            integral[name][p] += weight * (grad * directions[parameter]).sum()
    return {name: (change[name], integral[name]) for name in paths}


def _directions(step: Step, names: Sequence[str], length: float) -> dict[str, Tensor]:
    """Returns a random direction for each parameter, of `length` times its size."""
    found = {}
    for i, name in enumerate(names):
        parameter = step.network.parameters[name].data
        stream = generator(Key(step.seed, block=i, role=Role.VERIFICATION), parameter.device)
        size = parameter.square().mean().sqrt()
        drawn = torch.randn(parameter.shape, generator=stream, dtype=parameter.dtype, device=parameter.device)
        found[name] = drawn * length * (size if size > 0 else 1.0)
    return found


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
