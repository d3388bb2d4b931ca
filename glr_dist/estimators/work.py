"""Work of the pieces of a step, as each estimator states it: the planner turns it into seconds and bytes.

FLOPs count a product and its sum as two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glr_dist.estimators.drawn_examples import drawn_count
from glr_dist.estimators.step import Step, WorkItem
from glr_dist.estimators.unit_wise import move_cost
from glr_dist.sites import Site


@dataclass(frozen=True)
class ItemWork:
    """Work of one item.

    Attributes:
        flops: FLOPs of its products and convolutions.
        noise: elements of noise that it draws and scores.
        activations: elements of noisy logits, and of what follows them up to the next site.
        passes: passes that it runs one after another.
        frames: numbers of units of the sites, or of their column spaces, whose orthonormal frames it draws from.
        bases: FLOPs of the bases of the column spaces of all examples; items of a site and shared pass share them.
        delta: the site whose δ it returns, or None.
        grads: names of the parameters whose gradients it returns.
        scales: sites whose scale gradients it returns.
        moments: sites whose moments it returns, for their feedback.
    """

    flops: float
    noise: float
    activations: float
    passes: int
    frames: tuple[int, ...] = ()
    bases: float = 0.0
    delta: Site | None = None
    grads: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()


@dataclass(frozen=True)
class DriverWork:
    """Work that the driver does alone in a step, beside the optimizer.

    Attributes:
        shared_passes: passes of an example block that it runs, with noise.
        flops: FLOPs of the parameter gradients that it forms from δ.
    """

    shared_passes: int = 0
    flops: float = 0.0


def copy_cost(step: Step, site: Site) -> float:
    """FLOPs of a copy, as a share of the network's: the suffix, or what follows it, and noise inside a column space."""
    if site.name in step.unit_wise:
        return move_cost(step.network, site)
    space = step.spaces.get(site.name)
    return site.suffix + (space.expand_flops / step.signs / step.network.flops if space else 0.0)


def direction_count(item: WorkItem) -> int:
    """Returns R, the number of directions that an item redraws."""
    return sum(block.stop - block.start for block in item.directions)


def example_count(step: Step, item: WorkItem) -> int:
    """Returns n, the number of examples in the item's block."""
    return step.examples_in(item.example_block)


def redrawn_count(step: Step, item: WorkItem) -> int:
    """Returns m, the number of examples that the item redraws its site for; all of its block if it serves all sites."""
    n = example_count(step, item)
    return n if item.site is None else drawn_count(step, step.network.by_name[item.site], n)


def gradient_flops(step: Step, site: Site, examples: int) -> float:
    """FLOPs of (∂z/∂θ)ᵀ δ for δ [examples, D]: the layer's forward pass, or three times its whole segment's."""
    direct = site.name in step.rules
    blocks = step.network.block_flops[site.block if direct else site.start : site.block + 1]
    return (1.0 if direct else 3.0) * sum(blocks) * examples


def elements_from(sites: Sequence[Site], first: Site) -> int:
    """Elements per example of the noisy logits from a site on, and at least the widest tensor of its suffix."""
    return max(sum(site.units for site in sites[first.index :]), first.width)


def learned_scales(step: Step, sites: Sequence[Site]) -> tuple[str, ...]:
    """Returns the names of the given sites whose scale is learned."""
    return tuple(site.name for site in sites if site.name in step.log_scales)
