"""Compiled shared passes and redraws by shape, each compared with the eager one before its first use."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from glr_dist.errors import ClusterError, UserError
from glr_dist.estimators.drawn_examples import drawn_part
from glr_dist.estimators.fused_pass import FusedPass, PassCall, fused_pass
from glr_dist.estimators.fused_redraw import Call, FusedRedraw, Shares, fused
from glr_dist.estimators.samplers import DirectionBlock, frames_of
from glr_dist.estimators.step import Step, WorkItem
from glr_dist.estimators.unit_wise import cut_moves
from glr_dist.estimators.work import redrawn_count
from glr_dist.inductor import CompileError
from glr_dist.sites import Site, Tape
from glr_dist.trees import leaves

if TYPE_CHECKING:
    from glr_dist.estimators.estimator import Estimator
    from glr_dist.estimators.redraw import Redraw

TOLERANCE = 0.01  # of |δ|: a threshold unit that rounding flips changes one copy among all
_ROUNDING = 1e-5  # of a loss
_FLIPPED = 5  # a shared pass may differ in one example out of five: rounding can flip a threshold unit
_MOST_BLOCKS = 8  # of the moves of a site


class Shape(NamedTuple):
    """Identifies a compiled function.

    Attributes:
        form: that of the inputs and of the targets (`Step.form`).
        site: name of the site that is redrawn; None for a shared pass.
        examples: number of examples that the function computes.
        weighted: True if they are not all examples of their block, and have weights.
        directions: number of directions from each frame; from all of them without frames; unit by unit, the first move
            and the one after the last.
    """

    form: tuple[Hashable, Hashable]
    site: str | None
    examples: int
    weighted: bool = False
    directions: tuple[int, ...] = ()


def compilable(step: Step, site: Site) -> bool:
    """True if the redraws of a site are compiled; the configuration alone decides it."""
    # Other levels take a table of means, whose size depends on the number of directions.
    pairs = step.options.antithetic and len(step.levels.get(site.name, ())) == 1 and site.name not in step.log_scales
    tables = site.name in step.levels and not pairs
    cut = site.name in step.unit_wise and len(cut_moves(step, site)) > _MOST_BLOCKS  # each is a function of its own
    return not (tables or cut or site.name in step.spaces or site.name in step.feedback)


class CompiledStep:
    """The compiled functions of one network and one loss.

    A step whose redraws are not compiled does not compile its shared passes either.

    Attributes:
        digests: of the generated code, by shape. A copy in another process builds the functions again, and refuses code
            that differs.
        batches: numbers of examples and forms of the batches that all functions exist for.
        pass_error: why shared passes cannot be compiled, and run eagerly; empty if they can.
    """

    def __init__(self) -> None:
        self.batches: set[tuple[int, tuple[Hashable, Hashable]]] = set()
        self.pass_error = ""
        self.digests: dict[Shape, str] = {}
        self._functions: dict[Shape, FusedRedraw] = {}
        self._passes: dict[Shape, FusedPass] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the functions."""
        return {**vars(self), "batches": set(), "digests": dict(self.digests), "_functions": {}, "_passes": {}}

    def prepare(
        self,
        estimator: Estimator,
        step: Step,
        items: Iterable[WorkItem],
        tapes: Mapping[int, Tape],
        *,
        progress: bool = False,
    ) -> None:
        """Builds the redraws that items need and that do not exist yet; the network has the hooks of a pass.

        Args:
            estimator: the estimator.
            step: the step.
            items: its work items.
            tapes: the tapes of their example blocks.
            progress: show a bar on a terminal.

        Raises:
            CompileError: a redraw cannot be compiled.
            UserError: its result differs from that of the eager redraw.
            ClusterError: its code differs from that of the process that sent the step.
        """
        missing = {shape: first for shape, first in shapes_of(step, items).items() if shape not in self._functions}
        if not missing:
            return
        redraw = cast("Redraw", estimator)
        hidden = not progress or not sys.stderr.isatty()
        for shape, (item, block) in tqdm(missing.items(), desc="compiling", unit="redraw", disable=hidden):
            self._functions[shape] = self._checked(redraw, step, shape, item, block, tapes[item.example_block])

    def prepare_pass(self, estimator: Estimator, step: Step, example_block: int) -> None:
        """Builds the shared pass of an example block if it does not exist yet; the network has the hooks of a pass.

        Raises:
            CompileError: the pass cannot be compiled.
            UserError: its result differs from that of the eager pass.
            ClusterError: its code differs from that of the process that sent the step.
        """
        shape = _pass_shape(step, example_block)
        if shape in self._passes:
            return
        noisy = cast("Redraw", estimator).noisy
        call = PassCall.of(step, 0, example_block, noisy=noisy)
        try:
            function = fused_pass(call)
        except CompileError as error:
            raise CompileError(f"the shared pass cannot be compiled ({error})") from None
        expected = replace(step, compiled=None).shared_tape(0, example_block, noisy=noisy)
        _compare_passes(step, function(call)[0], expected)
        self._note("shared passes", shape, function.digest)
        self._passes[shape] = function

    def expects_pass(self, step: Step, example_block: int) -> bool:
        """True if the process that sent the step has compiled the shared pass of an example block."""
        return _pass_shape(step, example_block) in self.digests

    def has_pass(self, step: Step, example_block: int) -> bool:
        """True if the shared pass of an example block is compiled."""
        return _pass_shape(step, example_block) in self._passes

    def tape(self, step: Step, shared_pass: int, example_block: int, *, noisy: bool) -> Tape:
        """Runs a shared pass.

        Raises:
            FloatingPointError: a site's logits are not finite.
        """
        function = self._passes[_pass_shape(step, example_block)]
        tape, finite = function(PassCall.of(step, shared_pass, example_block, noisy=noisy))
        if not finite:
            step.check_logits(tape)
        return tape

    def shares(
        self, estimator: Redraw, step: Step, item: WorkItem, block: DirectionBlock | None, site: Site, tape: Tape
    ) -> Shares:
        """Returns the shares of a block of redraws in δ / N [n, *S] and, if σ is learned, in the gradient of log σ."""
        function = self._functions[_shape_of(step, item, block, site)]
        return function(Call.of(step, item, block, site, tape, estimator.noisy))

    def _checked(
        self, estimator: Redraw, step: Step, shape: Shape, item: WorkItem, block: DirectionBlock | None, tape: Tape
    ) -> FusedRedraw:
        """Builds a function, and compares its result on the batch with that of the eager redraw."""
        site = step.network.by_name[item.site or ""]
        eager, tape = drawn_part(replace(step, compiled=None), site, item.shared_pass, item.example_block, tape)
        call = Call.of(eager, item, block, site, tape, estimator.noisy)
        try:
            function = fused(call)
        except CompileError as error:
            raise CompileError(f"the redraws of the site '{site.name}' cannot be compiled ({error})") from None
        found, expected = function(call), estimator.eager_shares(eager, item, block, site, tape)
        sigma = min(1.0, step.scales[site.name].min().item())
        largest = tape.weighted(_magnitude(step, tape)).max().item()
        for mine, its in zip(found, expected, strict=True):
            if mine is not None and its is not None and math.isfinite(largest):  # the step itself refuses others
                rounding = _ROUNDING * largest * mine.numel() ** 0.5 / (step.size * sigma)
                _compare(site, mine, its, rounding)
        self._note(f"redraws of the site '{site.name}'", shape, function.digest)
        return function

    def _note(self, what: str, shape: Shape, digest: str) -> None:
        """Notes the digest of a function.

        Raises:
            ClusterError: it differs from that of the process that sent the step.
        """
        if self.digests.setdefault(shape, digest) != digest:
            raise ClusterError(
                f"execution.compile: this node compiles the {what} into other code than the process that trains, which "
                "may give different results; use nodes of one kind, or execution.compile=none"
            )


def shapes_of(step: Step, items: Iterable[WorkItem]) -> dict[Shape, tuple[WorkItem, DirectionBlock | None]]:
    """Returns the shapes of the compiled redraws of items, each with the first item and block that have it."""
    found: dict[Shape, tuple[WorkItem, DirectionBlock | None]] = {}
    for item in items:
        site = step.network.by_name[item.site or ""]
        for block in (item.directions or (None,)) if compilable(step, site) else ():
            found.setdefault(_shape_of(step, item, block, site), (item, block))
    return found


def _shape_of(step: Step, item: WorkItem, block: DirectionBlock | None, site: Site) -> Shape:
    directions: tuple[int, ...] = () if block is None else (block.stop - block.start,)
    if block is None:
        pass
    elif site.name in step.unit_wise:
        directions = (block.start, block.stop)
    elif step.framed(site):
        directions = tuple(stop - start for _, start, stop in frames_of(block, site.units))
    drawn = redrawn_count(step, item)
    return Shape(step.form, site.name, drawn, drawn < step.examples_in(item.example_block), directions)


def compiles_passes(step: Step, items: Iterable[WorkItem]) -> bool:
    """True if the shared passes of a step are compiled; the configuration alone decides it."""
    return bool(shapes_of(step, items)) and not step.feedback  # which needs derivatives of the losses


def _pass_shape(step: Step, example_block: int) -> Shape:
    return Shape(step.form, None, step.examples_in(example_block))


def _compare(site: Site, found: Tensor, expected: Tensor, rounding: float) -> None:
    """Refuses a result that differs from that of the eager redraw by more than rounding explains.

    Raises:
        UserError: it does.
    """
    difference, size = (found - expected).norm().item(), expected.norm().item()
    if not difference <= TOLERANCE * size + rounding:
        raise UserError(
            f"execution.compile: the compiled redraws of the site '{site.name}' differ from the eager ones by "
            f"{difference / max(size, 1e-30):.2g} of their size, more than {TOLERANCE:g}; use execution.compile=none"
        )


def _compare_passes(step: Step, found: Tape, expected: Tape) -> None:
    """Refuses a shared pass that differs from the eager one in more examples than rounding explains.

    Raises:
        UserError: it does.
    """
    n, rounding = len(expected.losses), _ROUNDING * _magnitude(step, expected)
    differs = torch.zeros(n, dtype=torch.bool, device=expected.losses.device)
    parts = [[tape.losses, *leaves((tape.logits, tape.inputs, tape.starts))] for tape in (found, expected)]
    for mine, its in zip(*parts, strict=True):
        differs |= _rows_differ(mine, its, rounding)
    for name, its in expected.statistics.items():
        if not torch.allclose(found.statistics[name], its, rtol=TOLERANCE, atol=_ROUNDING):
            differs[:] = True
    if (number := int(differs.sum())) > n // _FLIPPED:
        raise UserError(
            f"execution.compile: the compiled shared pass differs from the eager one in {number} of {n} examples, by "
            f"more than {TOLERANCE:g} of their size; use execution.compile=none"
        )


def _rows_differ(found: Tensor, expected: Tensor, rounding: Tensor) -> Tensor:
    """Returns whether a part of a pass [n, …] differs in each example by more than `rounding` [n]."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return torch.ones_like(rounding, dtype=torch.bool)
    if expected.is_complex():
        found, expected = torch.view_as_real(found), torch.view_as_real(expected)
    found, expected = (part.reshape(len(rounding), -1) for part in (found, expected))
    if not expected.is_floating_point():
        return torch.any(found != expected, 1)
    found, expected = found.double(), expected.double()
    allowed = TOLERANCE * expected.norm(dim=1) + rounding * expected.shape[1] ** 0.5
    # The step itself refuses numbers that are not finite.
    differs: Tensor = ~((found - expected).norm(dim=1) <= allowed) & expected.isfinite().all(1)
    return differs


def _magnitude(step: Step, tape: Tape) -> Tensor:
    """Returns the largest loss or logit of each example [n]: a loss is a difference of logits, and rounds like them."""
    n = len(tape.losses)
    parts = (tape.losses, *(tape.logits[site.name] for site in step.network.sites))
    return torch.stack([part.reshape(n, -1).abs().amax(1) for part in parts]).amax(0)
