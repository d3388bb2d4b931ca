"""Compiled redraws by shape, each compared with the eager redraw before its first use."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor
from tqdm import tqdm

from glr_dist.errors import ClusterError, UserError
from glr_dist.estimators.drawn_examples import drawn_part
from glr_dist.estimators.fused_redraw import Call, FusedRedraw, Shares, fused
from glr_dist.estimators.samplers import DirectionBlock, frames_of
from glr_dist.estimators.step import Step, WorkItem
from glr_dist.estimators.unit_wise import cut_moves
from glr_dist.estimators.work import redrawn_count
from glr_dist.inductor import CompileError
from glr_dist.sites import Site, Tape

if TYPE_CHECKING:
    from glr_dist.estimators.estimator import Estimator
    from glr_dist.estimators.redraw import Redraw

TOLERANCE = 0.01  # of |δ|: a threshold unit that rounding flips changes one copy among all
_ROUNDING = 1e-5  # of a loss
_MOST_BLOCKS = 8  # of the moves of a site


class Shape(NamedTuple):
    """Identifies a compiled redraw.

    Attributes:
        site: name of the site.
        examples: number of examples that are redrawn.
        weighted: True if they are not all examples of their block, and have weights.
        directions: number of directions from each frame; from all of them without frames; unit by unit, the first move
            and the one after the last.
    """

    site: str
    examples: int
    weighted: bool
    directions: tuple[int, ...]


def compilable(step: Step, site: Site) -> bool:
    """True if the redraws of a site are compiled; the configuration alone decides it."""
    # Other levels take a table of means, whose size depends on the number of directions.
    pairs = step.options.antithetic and len(step.levels.get(site.name, ())) == 1 and site.name not in step.log_scales
    tables = site.name in step.levels and not pairs
    cut = site.name in step.unit_wise and len(cut_moves(step, site)) > _MOST_BLOCKS  # each is a function of its own
    return not (tables or cut or site.name in {*step.spaces, *step.feedback})


class CompiledRedraws:
    """The compiled redraws of one network and one loss.

    Attributes:
        digests: of the generated code, by shape. A copy in another process builds the functions again, and refuses code
            that differs.
        sizes: numbers of examples of the batches that all functions exist for.
    """

    def __init__(self) -> None:
        self.sizes: set[int] = set()
        self.digests: dict[Shape, str] = {}
        self._functions: dict[Shape, FusedRedraw] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the functions."""
        return {"sizes": set(), "digests": dict(self.digests), "_functions": {}}

    def prepare(
        self,
        estimator: Estimator,
        step: Step,
        items: Iterable[WorkItem],
        tapes: Mapping[int, Tape],
        *,
        progress: bool = False,
    ) -> None:
        """Builds the functions that items need and that do not exist yet; the network has the hooks of a pass.

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
        site = step.network.by_name[shape.site]
        eager, tape = drawn_part(replace(step, compiled=None), site, item.shared_pass, item.example_block, tape)
        call = Call.of(eager, item, block, site, tape, estimator.noisy)
        try:
            function = fused(call)
        except CompileError as error:
            raise CompileError(f"the redraws of the site '{site.name}' cannot be compiled ({error})") from None
        found, expected = function(call), estimator.eager_shares(eager, item, block, site, tape)
        for mine, its in zip(found, expected, strict=True):
            if mine is not None and its is not None:
                _compare(step, site, mine, its, tape)
        if self.digests.setdefault(shape, function.digest) != function.digest:
            raise ClusterError(
                f"execution.compile: this node compiles the redraws of the site '{site.name}' into other code than the "
                "process that trains, which may give different results; use nodes of one kind, or "
                "execution.compile=none"
            )
        return function


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
    return Shape(site.name, drawn, drawn < step.examples_in(item.example_block), directions)


def _compare(step: Step, site: Site, found: Tensor, expected: Tensor, tape: Tape) -> None:
    """Refuses a result that differs from that of the eager redraw by more than rounding explains.

    Raises:
        UserError: it does.
    """
    difference, size = (found - expected).norm().item(), expected.norm().item()
    sigma = min(1.0, step.scales[site.name].min().item())
    largest = tape.weighted(tape.losses).abs().max().item()
    rounding = _ROUNDING * largest * found.numel() ** 0.5 / (step.size * sigma)
    if not difference <= TOLERANCE * size + rounding:
        raise UserError(
            f"execution.compile: the compiled redraws of the site '{site.name}' differ from the eager ones by "
            f"{difference / max(size, 1e-30):.2g} of their size, more than {TOLERANCE:g}; use execution.compile=none"
        )
