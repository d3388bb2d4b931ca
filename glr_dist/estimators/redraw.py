"""Base of `conditional` and `layerwise`: one site redraws its noise, and the suffix of the network runs again.

δ = (1/σ) E[(L - b) s(ε)] and ∂J/∂log σ = E[(L - b)(ε s(ε) - 1)], each given the shared pass on the tape.

Shapes: S signs, R directions, n examples, *S the shape of the site's logits, D their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from glr_dist.estimators.compiled_step import compilable
from glr_dist.estimators.drawn_examples import drawn_count, drawn_part, drawn_share, spread
from glr_dist.estimators.feedback import moments_key
from glr_dist.estimators.head import derivative_shares, expected_shares, head_gradient
from glr_dist.estimators.levels import scores_of
from glr_dist.estimators.samplers import DirectionBlock
from glr_dist.estimators.step import (
    Partial,
    Pass,
    Step,
    WorkItem,
    accumulate,
    likelihood_ratio,
    unchanged,
)
from glr_dist.estimators.unit_wise import cut_moves, draw_block, unit_wise_shares, widest
from glr_dist.estimators.variance import blocks, centred, grouped
from glr_dist.estimators.work import (
    DriverWork,
    ItemWork,
    copy_cost,
    direction_count,
    elements_from,
    gradient_flops,
    learned_scales,
    redrawn_count,
)
from glr_dist.sites import Site, Tape


class Redraw:
    """Estimates site by site.

    Attributes:
        noisy: True if the other sites keep the noise of the shared pass, False if they have none.
    """

    counts_loss = False

    noisy: ClassVar[bool]

    def passes(self, step: Step) -> int:
        return max((step.passes[site.name] for site in step.learned()), default=1)

    def tape(self, step: Step, shared_pass: int, example_block: int) -> Tape:
        return step.shared_tape(shared_pass, example_block, noisy=self.noisy)

    def items(self, step: Step, shared_pass: int) -> Iterator[WorkItem]:
        options = step.options
        for site in step.learned():
            if shared_pass >= step.passes[site.name]:
                continue
            if step.integrated(site):
                yield from (WorkItem(shared_pass, example_block, site.name) for example_block in step.example_blocks)
                continue
            if site.name in step.unit_wise:
                groups = grouped(cut_moves(step, site), options.items_per_site)
                for example_block in step.example_blocks:
                    for moves in groups:
                        yield WorkItem(shared_pass, example_block, site.name, moves)
                continue
            centred_within = options.baseline == "leave_one_out" and not step.differentiated(site)  # uses no baseline
            least = 2 if centred_within else 1
            limit = step.block_elements // (step.signs * drawn_count(step, site, options.example_block) * site.width)
            cut = blocks(
                step.copies[site.name] // step.signs, step.redrawn(site) if step.framed(site) else None, limit, least
            )
            parts = grouped(cut, options.items_per_site)
            for example_block in step.example_blocks:
                for directions in parts:
                    yield WorkItem(shared_pass, example_block, site.name, directions)

    def partial(self, step: Step, item: WorkItem, tape: Tape) -> Partial:
        assert item.site is not None
        site, n = step.network.by_name[item.site], len(tape.losses)
        step, tape = drawn_part(step, site, item.shared_pass, item.example_block, tape)
        result = Partial()
        delta: Tensor | None = None
        for block in item.directions or (None,):  # None: nothing is drawn
            found, scales = self._redrawn(step, item, block, site, tape)
            delta = found if delta is None else delta.add_(found)
            if scales is not None:
                accumulate(result.scales, site.name, scales)
        if not site.owned:
            return result
        assert delta is not None
        if site.name in step.feedback:
            result.moments = {moments_key(site.name): delta.flatten(1).T @ tape.errors}
            if step.options.feedback == "biased":
                delta = self._biased(step, item, site, tape, delta)
        if step.keeps_delta(site):
            result.delta = {site.name: spread(delta, tape, n)}
        else:
            result.grads = self.finish(step, item.shared_pass, item.example_block, site.name, delta, tape).grads
        return result

    def _redrawn(
        self, step: Step, item: WorkItem, block: DirectionBlock | None, site: Site, tape: Tape
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the shares of a block of redraws in δ / N [n, *S] and, if σ is learned, in the gradient of log σ."""
        if step.compiled is not None and compilable(step, site):
            return step.compiled.shares(self, step, item, block, site, tape)
        return self.eager_shares(step, item, block, site, tape)

    def eager_shares(
        self, step: Step, item: WorkItem, block: DirectionBlock | None, site: Site, tape: Tape
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the shares of a block of redraws, one operator after another: the reference of compiled redraws."""
        if block is None:
            share = 1 / (step.size * step.passes[site.name])
            return expected_shares(step, site, tape, step.targets(item.example_block, 1), share)
        if site.name in step.unit_wise:
            drawn = draw_block(step, item, block, site, len(tape.losses))
            noisy = self._others(step, item.shared_pass, item.example_block)
            uniforms = step.uniforms(item.shared_pass, item.example_block)
            targets, share = step.targets(item.example_block, 1), 1 / (step.size * step.passes[site.name])
            return unit_wise_shares(step, site, tape, block, drawn, targets, noisy, uniforms, share)
        scale, z = step.scales[site.name], tape.logits[site.name]
        n = len(z)
        eps = step.draw(site, item, block, n)
        directions = len(eps)
        space = step.spaces.get(site.name)
        if space is None:
            shift = scale * eps
        else:
            basis, z = self._outside(step, item, site, tape)
            shift = scale * space.expand(basis, eps, site)
        v = torch.empty(step.signs, *shift.shape, dtype=z.dtype, device=z.device)
        torch.add(z, shift, out=v[0])
        if step.options.antithetic:
            torch.sub(z, shift, out=v[1])
        v = v.view(-1, *site.shape)
        share = 1 / (step.size * step.passes[site.name] * step.copies[site.name])  # weight of one loss in J
        if step.differentiated(site):
            with torch.enable_grad():
                losses = self._losses(step, item, site, tape, v.requires_grad_())
            return derivative_shares(step, site, head_gradient(v, losses, site), shift, share)
        losses = self._losses(step, item, site, tape, v).view(step.signs, directions, n)
        weights = tape.weighted(centred(losses, step.options.baseline, tape.losses))
        odd = weights[0] - weights[1] if step.options.antithetic else weights[0]  # s(-ε) = -s(ε)
        even = weights.sum(0) if site.name in step.log_scales else None
        feedback = self._feedback(step, site, tape)
        if feedback is not None:  # σ fᵀε, of a pair twice; it is odd in ε, and leaves `even` as it is
            odd = odd - step.signs * (shift * feedback).flatten(2).sum(2)
        scores = scores_of(step, site, z, eps, v.view(step.signs, directions, n, *site.shape))
        by_delta, by_scale = likelihood_ratio(scores, odd, even)
        delta = by_delta.sum(0) / scale * share
        if scores.factor is not None:
            delta = delta * scores.factor
        if space is not None:
            delta = space.expand(basis, delta[None], site)[0]
        if feedback is not None:
            if space is not None:
                feedback = space.expand(basis, space.inside(basis, feedback), site)[0]
            delta = delta + step.signs * directions * share * feedback
        if by_scale is None:
            return delta, None
        units = by_scale.sum((0, 1)) * share
        return delta, units if scale.dim() else units.sum()

    @staticmethod
    def _feedback(step: Step, site: Site, tape: Tape) -> Tensor | None:
        """Returns f [n, *S], the prediction of a site's δ from the output error; None without a control variate."""
        if site.name not in step.feedback:
            return None
        predicted = tape.errors @ step.feedback[site.name].matrix.T
        if tape.weights is not None:
            predicted = predicted * tape.weights[:, None]
        return predicted.view(-1, *site.shape)

    def _biased(self, step: Step, item: WorkItem, site: Site, tape: Tape, delta: Tensor) -> Tensor:
        """Returns the item's share of ((1 - α) δ̂ + α f) / N [n, *S], from its share of δ̂ / N."""
        f, multiple = self._feedback(step, site, tape), step.feedback[site.name].multiple
        assert f is not None
        part = step.signs * direction_count(item) / step.copies[site.name]
        return (1 - multiple) * delta + multiple * f * (part / (step.size * step.passes[site.name]))

    @staticmethod
    def _outside(step: Step, item: WorkItem, site: Site, tape: Tape) -> tuple[Tensor, Tensor]:
        """Returns the basis of a site's column space, and its logits with the shared noise outside the space [n, *S].

        `layerwise`, whose shared pass has no noise, draws it here.
        """
        if site.name not in tape.spaces:
            space, z = step.spaces[site.name], tape.logits[site.name]
            basis = space.basis(site.module, tape.inputs[site.name])
            eps = step.shared_eps(site, item.shared_pass, item.example_block)
            outside = eps - space.expand(basis, space.inside(basis, eps), site)[0]
            tape.spaces[site.name] = basis, z + step.scales[site.name] * outside
        return tape.spaces[site.name]

    def finish(self, step: Step, shared_pass: int, example_block: int, site: str, delta: Tensor, tape: Tape) -> Partial:
        noisy, uniforms = self._others(step, shared_pass, example_block), step.uniforms(shared_pass, example_block)
        return Partial(grads=step.parameter_gradients(step.network.by_name[site], tape, delta, noisy, uniforms))

    def copies(self, step: Step) -> int:
        return round(
            sum(step.passes[site.name] * step.copies[site.name] * drawn_share(step, site) for site in step.learned())
        )

    def forward_passes(self, step: Step) -> float:
        redraws = sum(
            step.passes[site.name] * step.copies[site.name] * copy_cost(step, site) * drawn_share(step, site)
            for site in step.learned()
        )
        return self.passes(step) + redraws

    def work(self, step: Step, item: WorkItem) -> ItemWork:
        assert item.site is not None
        network, n, directions = step.network, redrawn_count(step, item), direction_count(item)
        site = network.by_name[item.site]
        way = step.unit_wise.get(site.name)
        copies = directions * (way.replays if way else step.signs)
        flops = (2 if step.differentiated(site) else 1) * copy_cost(step, site) * network.flops * copies * n
        space = step.spaces.get(site.name)
        formed = bool(site.owned) and not step.keeps_delta(site)
        return ItemWork(
            flops=flops + (gradient_flops(step, site, n) if formed else 0.0),
            noise=n * directions * (1 if way else step.redrawn(site)),
            activations=n * max(copies, 1) * (widest(network, site) if way else elements_from(network.sites, site)),
            passes=max(len(item.directions), 1),
            frames=(step.redrawn(site),) if item.directions and not way and step.framed(site) else (),
            bases=space.basis_flops * step.size * drawn_share(step, site) if space else 0.0,
            delta=site if site.owned and not formed else None,
            grads=site.owned if formed else (),
            scales=learned_scales(step, (site,)),
            moments=(site.name,) if site.name in step.feedback else (),
        )

    def driver_work(self, step: Step) -> DriverWork:
        flops = sum(
            step.passes[site.name] * gradient_flops(step, site, step.size)
            for site in step.learned()
            if site.owned and step.keeps_delta(site)
        )
        return DriverWork(self.passes(step) * len(step.example_blocks), flops)

    def _others(self, step: Step, shared_pass: int, example_block: int) -> Callable[[Site, Tensor], Tensor]:
        return step.shared_noise(shared_pass, example_block) if self.noisy else unchanged

    def _losses(self, step: Step, item: WorkItem, site: Site, tape: Tape, v: Tensor) -> Tensor:
        """Returns the losses [S·R·n] of the network's suffix, run from the noisy logits v [S·R·n, *S]."""
        uniforms = step.uniforms(item.shared_pass, item.example_block)
        passing = Pass(step, self._others(step, item.shared_pass, item.example_block), tape.u)
        outputs = step.network.replay(site, tape, v, passing.visit, uniforms)
        return passing.losses(outputs, step.targets(item.example_block, len(v) // len(tape.losses)))
