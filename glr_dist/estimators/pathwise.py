"""`pathwise`: autograd through the whole network (infinitesimal perturbation analysis = backpropagation).

Without noise it gives the gradient of the clean loss ("BP"), with noise in the pass that of J ("BP+"): the baseline to
compare with. The network and the loss must be differentiable.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glr_dist.errors import NoGradientError
from glr_dist.estimators.step import Partial, Step, WorkItem
from glr_dist.estimators.work import DriverWork, ItemWork, elements_from, example_count, learned_scales
from glr_dist.losses import per_example
from glr_dist.sites import Tape
from glr_dist.trees import taken

_FORWARD_AND_BACKWARD = 3.0  # forward passes: a backward pass costs about two


class Pathwise:
    """Averages the gradients of autograd over M noisy passes."""

    counts_loss = True

    def passes(self, step: Step) -> int:
        assert isinstance(step.options.passes, int)
        return step.options.passes

    def tape(self, step: Step, shared_pass: int, example_block: int) -> Tape:
        return Tape()

    def items(self, step: Step, shared_pass: int) -> Iterator[WorkItem]:
        return (WorkItem(shared_pass, example_block) for example_block in step.example_blocks)

    def partial(self, step: Step, item: WorkItem, tape: Tape) -> Partial:
        examples = step.examples_of(item.example_block)
        n = step.examples_in(item.example_block)

        def visit(name: str, x: Tensor, z: Tensor) -> Tensor:
            if step.noise is None:
                return z
            learned = step.log_scales.get(name)
            scale = step.scales[name] if learned is None else learned.exp()
            return z + scale * step.shared_eps(step.network.by_name[name], item.shared_pass, item.example_block)

        leaves = {**step.network.parameters, **{f"scale {name}": p for name, p in step.log_scales.items()}}
        statistics: dict[str, Tensor] = {}
        with torch.enable_grad():
            outputs = step.network.run(
                taken(step.x, examples),
                visit,
                step.uniforms(item.shared_pass, item.example_block),
                statistics=statistics,
            )
            loss = per_example(step.loss(outputs, taken(step.y, examples)), n).sum() / (step.size * self.passes(step))
        if not loss.requires_grad:
            raise NoGradientError("pathwise: the loss has no gradient; use another estimator")
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        passes = len(step.all_example_blocks) * self.passes(step)
        result = Partial(
            loss=loss.detach(), statistics={name: value.detach() / passes for name, value in statistics.items()}
        )
        for name, grad in zip(leaves, grads, strict=True):
            if grad is None:
                raise NoGradientError(
                    f"pathwise: autograd gives no gradient to '{name}' (a discontinuous activation lies between it and "
                    "the loss, or it is not used); use another estimator"
                )
            if name in step.network.parameters:
                result.grads[name] = grad.to_dense()
            else:
                result.scales[name.removeprefix("scale ")] = grad
        return result

    def finish(self, step: Step, shared_pass: int, example_block: int, site: str, delta: Tensor, tape: Tape) -> Partial:
        raise AssertionError("pathwise items return parameter gradients")

    def copies(self, step: Step) -> int:
        return self.passes(step)

    def forward_passes(self, step: Step) -> float:
        return _FORWARD_AND_BACKWARD * self.passes(step)

    def work(self, step: Step, item: WorkItem) -> ItemWork:
        network, n = step.network, example_count(step, item)
        sites = network.sites
        return ItemWork(
            flops=_FORWARD_AND_BACKWARD * network.flops * n,
            noise=0.0,
            activations=_FORWARD_AND_BACKWARD * n * elements_from(sites, sites[0]) if sites else 0.0,
            passes=int(_FORWARD_AND_BACKWARD),
            grads=tuple(network.parameters),
            scales=learned_scales(step, step.learned()),
        )

    def driver_work(self, step: Step) -> DriverWork:
        return DriverWork()
