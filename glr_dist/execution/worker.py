"""The worker of `layers`: a plain class without Ray, which receives everything that it needs with each call."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from glr_dist.estimators import Estimator, Partial, Step, WorkItem
from glr_dist.execution.inline import Inline
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.execution.reproducible import reproducible
from glr_dist.execution.wire import Packed, packed, unpacked
from glr_dist.sites import Tape


def program_of(estimator: Estimator, step: Step) -> tuple[Estimator, Step]:
    """Returns the part that is constant between steps and pickled once: the estimator, and the step without its data.

    The tensors inside are placeholders for the state.
    """
    empty = torch.empty(0, device=step.device)
    return estimator, replace(step, number=0, x=empty, y=empty)


def state_of(step: Step) -> Packed:
    """Packs the part that changes between steps: the step's number, all tensors of the network and noise, the batch."""
    return packed({"number": step.number, "numbers": numbers_of(step), "x": step.x, "y": step.y})


def tapes_for_items(step: Step, tapes: Mapping[int, Tape]) -> Packed:
    """Packs the parts of tapes that items need: inputs only of sites whose items form parameter gradients."""
    needed = step.formed_by_items()  # among them those with column spaces, which have fewer parameters than logits
    return packed(
        {
            block: {
                **vars(tape),
                "inputs": {name: x for name, x in tape.inputs.items() if name in needed},
                "spaces": {},
                "noise": {},
                "part": None,
            }
            for block, tape in tapes.items()
        }
    )


def numbers_of(step: Step) -> list[Tensor]:
    """Returns all parameters and buffers of the network, the scales of its noise, and the maps of its feedback."""
    model = step.network.model
    maps = (tensor for feedback in step.feedback.values() for tensor in feedback)
    return [*model.parameters(), *model.buffers(), *step.scales.values(), *step.log_scales.values(), *maps]


class Worker:
    """Computes work items and tapes; keeps its last inputs, so that repeated ones are not unpacked again.

    Args:
        device: where it computes.
        threads: number of items that it computes at a time.
    """

    def __init__(self, device: torch.device, threads: int = 1) -> None:
        keep_freed_memory()
        self.device = device
        self._inline = Inline(threads)
        self._program: bytes | None = None
        self._state: Packed | None = None
        self._sent: Packed | None = None
        self._tapes: dict[int, Tape] = {}

    def partials(
        self, program: bytes, state: Packed, tapes: Packed, items: Sequence[WorkItem]
    ) -> tuple[Packed, list[float]]:
        """Returns the partial sum of each item, packed, and the seconds that each took.

        Args:
            program: `program_of`, pickled.
            state: `state_of` the step.
            tapes: `tapes_for_items` of the items' shared pass.
            items: work items of one shared pass.
        """
        if tapes is not self._sent:
            found = unpacked(tapes, self.device)
            self._sent, self._tapes = tapes, {block: Tape(**tape) for block, tape in found.items()}

        def timed(item: WorkItem) -> tuple[Partial, float]:
            started = time.perf_counter()
            return self.estimator.partial(
                self.step, item, self._tapes[item.example_block]
            ), time.perf_counter() - started

        with self._loaded(program, state):
            if self.step.compiled is not None:
                self.step.compiled.prepare(self.estimator, self.step, items, self._tapes)
            partials, seconds = zip(*self._inline.map(timed, items), strict=True)
            return packed([vars(partial) for partial in partials]), list(seconds)

    def tape(self, program: bytes, state: Packed, shared_pass: int, example_block: int) -> Packed:
        """Returns the packed tape of one example block's shared pass."""
        with self._loaded(program, state):
            compiled = self.step.compiled
            if compiled is not None and compiled.expects_pass(self.step, example_block):
                compiled.prepare_pass(self.estimator, self.step, example_block)
            tape = self.estimator.tape(self.step, shared_pass, example_block)
            return packed({**vars(tape), "noise": {}})

    @contextmanager
    def _loaded(self, program: bytes, state: Packed) -> Iterator[None]:
        """Loads the step that `program` and `state` describe, for the duration of the context."""
        with reproducible(), torch.no_grad():
            if program is not self._program:
                self.estimator, self.step = pickle.loads(program)
                self._program, self._state = program, None
            if state is not self._state:
                found = unpacked(state, self.device)
                for tensor, number in zip(numbers_of(self.step), found["numbers"], strict=True):
                    tensor.copy_(number)
                self.step = replace(self.step, number=found["number"], x=found["x"], y=found["y"])
                self._state = state
            with self.step.network.hooked():
                yield
