"""`layers`: Ray actors compute the work items of a step in parallel, from one shared forward pass.

The state of a step goes into the object store once, as one array of bytes, and so does the tape of each shared pass.
Actors return one partial sum per item, and this process adds these in the order of the items. The result is therefore
bitwise identical to `inline` for any number of actors and any actor failures.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from ray import cloudpickle

from glr_dist.errors import ClusterError, UserError
from glr_dist.estimators import Estimator, Partial, Step
from glr_dist.execution.executor import Executor, TapedItem
from glr_dist.execution.inline import Inline
from glr_dist.execution.plan import Costs, batches
from glr_dist.execution.pool import Call, Pool
from glr_dist.execution.shell import Shared
from glr_dist.execution.wire import unpacked
from glr_dist.execution.worker import Worker, program_of, state_of, tapes_for_items
from glr_dist.sites import Tape
from glr_dist.text import one_line

A = TypeVar("A")
B = TypeVar("B")

_LEAST_CALL = 0.005  # minimum seconds of work per call; the call itself costs about one millisecond


class Layers(Executor):
    """Computes work items on Ray actors, and the shared passes and all sums in this process.

    It joins the cluster that RAY_ADDRESS names, or else starts a local Ray that ends with it. Use it as a context
    manager, or call `close`.

    Args:
        actors: number of actors; by default as many as the cluster has room for.
        cpus_per_actor: CPUs that an actor reserves, and number of items that it computes at a time (at least one).
        gpus_per_actor: GPUs that an actor reserves; if above 0, the actors compute on CUDA, otherwise on the CPU.
        threads: threads of this process, for the shared pass and evaluation; torch's own number by default.
        placement_timeout: seconds to wait until the cluster has placed the actors.
        hang_timeout: seconds without an answer after which an actor is restarted.

    Raises:
        ClusterError: the cluster has no room for the actors.
    """

    def __init__(
        self,
        actors: int | None = None,
        *,
        cpus_per_actor: float = 1,
        gpus_per_actor: float = 0,
        threads: int | None = None,
        placement_timeout: float = 15,
        hang_timeout: float = 60,
    ) -> None:
        self.device = torch.device("cuda" if gpus_per_actor else "cpu")
        self.bytes = 0  # sent and received
        self.inline = Inline(threads)
        self._items, self._asked_at = 0, time.perf_counter()
        self._costs = Costs()
        self._program_of: object = None
        self._program: Shared | None = None
        self._state: Shared | None = None
        self._pass_seconds: deque[float] = deque(maxlen=3)  # of the last shared passes here; the first is slow
        self.pool = Pool(
            Worker,
            (self.device, 1 if gpus_per_actor else max(1, int(cpus_per_actor))),
            actors,
            cpus=cpus_per_actor,
            gpus=gpus_per_actor,
            placement_timeout=placement_timeout,
            hang_timeout=hang_timeout,
            role="Layers",
        )

    def begin(self, estimator: Estimator, step: Step) -> None:
        """Sends the state of the step, after the program if that has changed."""
        if step.device.type != self.device.type:
            raise ClusterError(
                f"execution.gpus_per_actor: the actors compute on {self.device.type}, this process on "
                f"{step.device.type}; both must use the same kind, since their noise must be the same"
            )
        if step.device.index:
            raise ClusterError(
                f"execution.device: '{step.device}' is not allowed with actors on GPUs, each of which sees its own GPU "
                "alone, as cuda:0; use 'auto', and choose the GPU of this process by CUDA_VISIBLE_DEVICES"
            )
        network = step.network
        parts = (
            network,
            network.prepared_for,
            network.sites,
            estimator,
            step.options,
            step.noise,
            step.seed,
            step.loss,
            step.copies,
            step.passes,
            step.unit_wise,
            step.levels,
            step.head,
            step.spaces,
            None if step.compiled is None else dict(step.compiled.digests),
        )
        if self._program_of != parts:
            self._program = self.pool.share("program", _pickled(program_of(estimator, step)))
            self._program_of = parts
        state = state_of(step)
        self.bytes += state.size
        self._state = self.pool.share("state", state)

    def tapes(self, estimator: Estimator, step: Step, shared_pass: int) -> list[Tape]:
        """Runs a shared pass in this process, or on the actors by example blocks if that is faster."""
        if not self._spread(step):
            started = time.perf_counter()
            tapes = list(self.inline.map(lambda block: estimator.tape(step, shared_pass, block), step.example_blocks))
            self._pass_seconds.append(time.perf_counter() - started)
            return tapes
        sent = dict(
            self.pool.run(Call("tape", (self._program, self._state, shared_pass, b)) for b in step.example_blocks)
        )
        self.bytes += sum(tape.size for tape in sent.values())
        return [Tape(**unpacked(sent[place], self.device)) for place in sorted(sent)]

    def partials(
        self, estimator: Estimator, step: Step, passes: Iterable[list[TapedItem]]
    ) -> Iterator[tuple[TapedItem, Partial]]:
        """Yields the partial sum of each item, in order; items of up to two shared passes are in flight."""
        sent: list[list[tuple[int, TapedItem]]] = []

        def calls() -> Iterator[Call]:
            first = 0
            for passed in passes:
                tapes = tapes_for_items(step, {taped.item.example_block: taped.tape for taped in passed})
                self.bytes += tapes.size
                shared = self.pool.share("tapes", tapes)
                seconds = [self._costs.seconds(step, taped.item) for taped in passed]
                for actor, numbers in batches(seconds, len(self.pool), _LEAST_CALL):
                    sent.append([(first + number, passed[number]) for number in numbers])
                    items = [passed[number].item for number in numbers]
                    yield Call("partials", (self._program, self._state, shared, items), actor)
                first += len(passed)

        arrived: dict[int, tuple[TapedItem, Partial]] = {}
        following = 0
        for call, (partials, seconds) in self.pool.run(calls()):
            self.bytes += partials.size
            for (place, taped), took, partial in zip(sent[call], seconds, unpacked(partials, step.device), strict=True):
                self._costs.observe(step, taped.item, took)
                arrived[place] = taped, Partial(**partial)
            sent[call].clear()
            while following in arrived:
                yield arrived.pop(following)
                following += 1
        self._items += following

    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
        """Yields the results in the order of the arguments, computed in this process."""
        return self.inline.map(function, arguments)

    def progress(self) -> dict[str, Any]:
        """Returns items per second, each actor's share of busy time, and restarts, since the previous call."""
        now = time.perf_counter()
        rate, self._items, self._asked_at = self._items / (now - self._asked_at), 0, now
        return {"items_per_second": rate, **self.pool.progress()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Layers:
        """Returns itself: a copy of a network shares its actors."""
        return self

    def close(self) -> None:
        """Ends the actors, and Ray if it was started for them."""
        self.pool.close()

    def _spread(self, step: Step) -> bool:
        """True if the actors would finish a shared pass sooner than this process, estimated from recent passes here."""
        blocks = len(step.example_blocks)
        here, there = min(self.inline.threads, blocks), min(len(self.pool), blocks)
        seen = self._pass_seconds
        return len(seen) == seen.maxlen and min(seen) * (1 - here / there) > _LEAST_CALL


def _pickled(program: object) -> bytes:
    try:
        return cloudpickle.dumps(program)  # type: ignore[no-any-return]
    except Exception as error:
        reason = one_line(error)
        raise UserError(f"the network, the loss and the noise cannot be sent to the actors ({reason})") from None
