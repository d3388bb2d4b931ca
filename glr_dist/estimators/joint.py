"""`joint`: all sites at once, K whole noisy passes (the paper's estimator: Peng et al., INFORMS J. on Computing 2022).

∂J/∂θ_l = (1/N) Σ_n E[ (L - b) (∂z_l/∂θ_l)ᵀ s(ε_l) / σ_l ]; the input of a site differs from copy to copy, so each copy
keeps its own. The baseline is the loss of a noise-free pass, or leave-one-out by copy or antithetic pair.

Shapes: S signs, R directions, n examples; a pass holds C = S·R copies of its example block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glr_dist.estimators.head import DERIVATIVE, EXPECTED, expected_gradient, head_gradient
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.estimators.step import Partial, Pass, Scores, Step, WorkItem, accumulate, likelihood_ratio
from glr_dist.estimators.variance import blocks, centred, grouped
from glr_dist.estimators.work import (
    DriverWork,
    ItemWork,
    direction_count,
    elements_from,
    example_count,
    gradient_flops,
    learned_scales,
)
from glr_dist.sites import Site, Tape
from glr_dist.trees import Tree, copied, taken


class Joint:
    """Estimates ∂J from whole noisy passes, which redraw the noise of all sites together."""

    counts_loss = True

    def passes(self, step: Step) -> int:
        return 1

    def tape(self, step: Step, shared_pass: int, example_block: int) -> Tape:
        if step.options.baseline == "shared":
            return step.shared_tape(shared_pass, example_block, noisy=False)
        return Tape()

    def items(self, step: Step, shared_pass: int) -> Iterator[WorkItem]:
        sites = step.network.sites
        width = max(site.width for site in sites)
        least = 2 if step.options.baseline == "leave_one_out" else 1
        limit = step.block_elements // (step.signs * step.options.example_block * width)
        cut = blocks(step.copies[sites[0].name] // step.signs, None, limit, least)
        parts = grouped(cut, step.options.items_per_site)
        for example_block in step.example_blocks:
            for directions in parts:
                yield WorkItem(shared_pass, example_block, None, directions)

    def partial(self, step: Step, item: WorkItem, tape: Tape) -> Partial:
        result = Partial()
        for block in item.directions:
            result.add(self._passes(step, item, block, tape))
        return result

    def _passes(self, step: Step, item: WorkItem, block: DirectionBlock, tape: Tape) -> Partial:
        """Returns the share of one block of whole passes."""
        x = taken(step.x, step.examples_of(item.example_block))
        n, directions = step.examples_in(item.example_block), block.stop - block.start
        copies = step.signs * directions
        first = step.network.sites[0]
        eps: dict[str, Tensor] = {}
        noisy: dict[str, Tensor] = {}

        def visit(site: Site, z: Tensor) -> Tensor:
            if head == EXPECTED and site is last:
                noisy[site.name] = copied(z, copies * n // len(z))  # as the only site, it ran once for all copies
                return noisy[site.name]
            drawn = step.draw(site, item, block, n)
            eps[site.name] = torch.stack([drawn, -drawn]) if step.options.antithetic else drawn[None]
            added = (eps[site.name] * step.scales[site.name]).view(copies, n, *site.shape)
            v = (z.view(-1, n, *site.shape) + added).view(-1, *site.shape)
            if head == DERIVATIVE and site is last:
                torch.set_grad_enabled(True)  # the rest of the pass has a graph, until no_grad ends below
                v.requires_grad_()
            noisy[site.name] = v
            return v

        last, head = step.network.sites[-1], step.head.kind
        passing = Pass(step, visit, step.shared_u(item.shared_pass, item.example_block))
        targets = step.targets(item.example_block, copies)
        uniforms = step.uniforms(item.shared_pass, item.example_block, block=1 + block.number)
        # The part before the first site is the same for all copies: it runs once, unless that site is nested.
        start = x if first.top else copied(x, copies)
        with torch.no_grad():
            outputs, own = step.network.record(start, passing.visit, uniforms)
            losses = passing.losses(outputs, targets)
        share = 1 / (step.size * step.copies[first.name])
        result = Partial(loss=losses.detach().sum() * share)
        weights = centred(losses.detach().view(step.signs, directions, n), step.options.baseline, tape.losses)
        for site in step.learned():
            scale, learned = step.scales[site.name], site.name in step.log_scales
            units: Tensor | None
            if head == EXPECTED and site is last:
                by_delta, units = self._expected(step, noisy[site.name], targets, n)
                delta = by_delta.view(step.signs, directions, n, *site.shape) * share
            else:
                e = eps[site.name]
                by_scale: Tensor | None
                if head == DERIVATIVE and site is last:
                    by_delta = head_gradient(noisy[site.name], losses, site).view(e.shape)
                    delta, by_scale = by_delta * share, by_delta * e * scale
                else:
                    by_delta, by_scale = likelihood_ratio(
                        Scores.of(step.noise_at(site), e, learned=learned), weights, weights if learned else None
                    )
                    delta = by_delta / scale * share
                units = None if by_scale is None else by_scale.sum((0, 1, 2))
            if learned:
                assert units is not None
                units = units * share
                result.scales[site.name] = units if scale.dim() else units.sum()
            if site.owned:
                once = len(own.logits[site.name]) == n  # the part before the first site ran once for all copies
                delta = delta.sum((0, 1)) if once else delta.view(-1, *site.shape)
                grads = step.parameter_gradients(
                    site, own, delta, lambda other, _: noisy[other.name].detach(), uniforms
                )
                for name, grad in grads.items():
                    accumulate(result.grads, name, grad)
        return result

    @staticmethod
    def _expected(step: Step, z: Tensor, targets: Tree, n: int) -> tuple[Tensor, Tensor]:
        """Returns the derivatives of the copies' expected losses by z [C·n, *S] and by log σ, n rows at a time."""
        rows = range(0, len(z), n)
        parts = [expected_gradient(step, z[i : i + n], taken(targets, slice(i, i + n))) for i in rows]
        return torch.cat([by_z for by_z, _ in parts]), torch.stack([by_scale for _, by_scale in parts]).sum(0)

    def finish(self, step: Step, shared_pass: int, example_block: int, site: str, delta: Tensor, tape: Tape) -> Partial:
        raise AssertionError("joint items return parameter gradients")

    def copies(self, step: Step) -> int:
        return step.copies[step.network.sites[0].name]

    def forward_passes(self, step: Step) -> float:
        return self.copies(step) + (step.options.baseline == "shared")

    def work(self, step: Step, item: WorkItem) -> ItemWork:
        network, n, directions = step.network, example_count(step, item), direction_count(item)
        copies, blocks_, first = step.signs * directions, len(item.directions), network.sites[0]
        once = sum(network.block_flops[: first.block + 1]) if first.top else 0.0  # runs once a pass, for all its copies
        flops = blocks_ * once * n + first.suffix * network.flops * copies * n
        for site in step.learned():
            if site.owned:
                rows = blocks_ * n if site is first and first.top else copies * n
                flops += gradient_flops(step, site, rows)
        return ItemWork(
            flops=flops,
            noise=n * directions * sum(site.units for site in network.sites),
            activations=n * copies * elements_from(network.sites, first),
            passes=blocks_,
            frames=tuple(site.units for site in network.sites),
            grads=tuple(dict.fromkeys(name for site in step.learned() for name in site.owned)),
            scales=learned_scales(step, step.learned()),
        )

    def driver_work(self, step: Step) -> DriverWork:
        return DriverWork(len(step.example_blocks) if step.options.baseline == "shared" else 0)
