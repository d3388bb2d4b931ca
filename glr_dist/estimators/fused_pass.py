"""The shared pass of a block of examples as one function of tensors that torch's compiler builds.

Shapes: n examples of the block, *S the shape of a site's logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glr_dist.estimators.fused_arguments import Name, held, lent, names_of, of_kind, values
from glr_dist.estimators.step import Pass, Step, unchanged
from glr_dist.inductor import built
from glr_dist.network import Uniforms
from glr_dist.sites import Site, Tape
from glr_dist.trees import Tree, leaves, mapped, taken

_RECORDED = ("logits", "inputs", "starts", "statistics", "losses")  # parts of a tape that the function returns


class PassCall(NamedTuple):
    """Inputs of a shared pass.

    Attributes:
        step: the step.
        shared_pass: number of the pass.
        example_block: number of the block of examples.
        noisy: True if the pass has noise.
        x, targets: inputs and targets of the block, trees of tensors [n, …].
        u: random numbers of the head's estimates of expectations [n], or [0].
        noise: receives σ ε [n, *S] by site.
    """

    step: Step
    shared_pass: int
    example_block: int
    noisy: bool
    x: Tree
    targets: Tree
    u: Tensor
    noise: dict[str, Tensor]

    @classmethod
    def of(cls, step: Step, shared_pass: int, example_block: int, *, noisy: bool) -> PassCall:
        """Returns the inputs of a pass."""
        x, y = (taken(tree, step.examples_of(example_block)) for tree in (step.x, step.y))
        u = step.shared_u(shared_pass, example_block) if noisy else torch.empty(0)
        return cls(step, shared_pass, example_block, noisy, x, y, u, {})

    def draw(self, site: str) -> Tensor:
        """Returns σ ε [n, *S] of a site, which is drawn once."""
        if site not in self.noise:
            other = self.step.network.by_name[site]
            self.noise[site] = self.step.shared_shift(other, self.shared_pass, self.example_block)
        return self.noise[site]

    def uniforms(self, number: int, x: Tensor) -> Tensor:
        """Draws the uniforms of a call of a keyed module, in the shape of x [n, …]."""
        return self.step.uniforms(self.shared_pass, self.example_block)(number, x)

    def recorded(self, noise: Callable[[Site], Tensor], uniforms: Uniforms) -> Tape:
        """Runs the pass with the σ ε that `noise` returns for a site; returns its tape."""
        passing = Pass(self.step, self.step.adding(noise) if self.noisy else unchanged, self.u)
        outputs, tape = self.step.network.record(self.x, passing.visit, uniforms)
        tape.losses = passing.losses(outputs, self.targets)
        return tape


_GIVEN: dict[str, Callable[[PassCall, Any], Tensor]] = {
    "input": lambda call, i: leaves(call.x)[i],
    "target": lambda call, i: leaves(call.targets)[i],
    "u": lambda call, _: call.u,
    "scale": lambda call, site: call.step.scales[site],
    "noise": lambda call, site: call.draw(site),
    "uniforms": lambda call, request: call.uniforms(request[0], torch.empty(request[1], device=call.step.device)),
    "tensor": lambda _, place: place.tensor(),
}


@dataclass(frozen=True)
class FusedPass:
    """A compiled shared pass of one number of examples.

    Attributes:
        run: the function.
        names: of its arguments.
        form: the recorded parts of a tape, with empty tensors.
        places: where each of these tensors comes from: its number among the results, or the name of an argument.
        digest: identifies the generated code.
    """

    run: Callable[..., tuple[Tensor, ...]]
    names: tuple[Name, ...]
    form: Tree
    places: tuple[int | Name, ...]
    digest: str

    def __call__(self, call: PassCall) -> tuple[Tape, bool]:
        """Returns the tape of a pass, and True if the sum of all logits is finite."""
        *results, total = self.run(*values(_GIVEN, call, self.names))
        places = iter(self.places)

        def found(_: Tensor) -> Tensor:
            place = next(places)
            return (results[place] if isinstance(place, int) else values(_GIVEN, call, [place])[0]).contiguous()

        tape = Tape(**mapped(found, self.form), u=call.u, noise=call.noise)
        return tape, math.isfinite(total.item())


def fused_pass(call: PassCall) -> FusedPass:
    """Compiles the shared pass of a block of examples; the network has the hooks of a pass.

    Raises:
        CompileError: it cannot be compiled.
    """
    requests: list[tuple[int, tuple[int, ...]]] = []

    def requested(number: int, x: Tensor) -> Tensor:
        requests.append((number, tuple(x.shape)))
        return call.uniforms(number, x)

    call.recorded(lambda site: call.draw(site.name), requested)
    step, model = call.step, call.step.network.model
    names: list[Name] = [
        *names_of("input", call.x),
        *names_of("target", call.targets),
        ("u", None),
        *(("scale", name) for name in step.scales),
        *(("noise", name) for name in call.noise),
        *(("uniforms", request) for request in dict.fromkeys(requests)),
        *(("tensor", place) for place in held(model)),
    ]
    form: Tree = None
    places: list[int | Name] = []

    def function(*arguments: Tensor) -> tuple[Tensor, ...]:
        nonlocal form
        given = dict(zip(names, arguments, strict=True))
        traced = call._replace(
            step=replace(step, scales={name: given["scale", name] for name in step.scales}),
            x=of_kind(given, "input", call.x),
            targets=of_kind(given, "target", call.targets),
            u=given["u", None],
        )
        with lent(model, given):
            tape = traced.recorded(
                lambda site: given["noise", site.name], lambda number, x: given["uniforms", (number, tuple(x.shape))]
            )
        recorded = {part: getattr(tape, part) for part in _RECORDED}
        form = mapped(lambda _: torch.empty(0), recorded)
        named = {id(value): name for name, value in given.items()}
        results = {id(tensor): tensor for tensor in leaves(recorded) if id(tensor) not in named}
        numbers = {key: number for number, key in enumerate(results)}
        places[:] = [named[id(t)] if id(t) in named else numbers[id(t)] for t in leaves(recorded)]
        total = torch.stack([z.sum() for z in tape.logits.values()]).sum()
        return *results.values(), total

    found = built(function, values(_GIVEN, call, names))
    return FusedPass(found.run, tuple(names[i] for i in found.used), form, tuple(places), found.digest)
