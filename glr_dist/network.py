"""Cuts a network into segments that end in sites, and runs it with noise at the sites.

A network is a chain of blocks. A *site* is a module call whose output (logits) receives noise: a block of the chain,
or a module nested inside a block, which a forward hook reaches for the time of an estimate. Every traversal of the
chain calls a `visit(name, x, z) -> v`, which returns a site's noisy logits.

Shapes: N examples, z [N, *S] the logits of a site before noise, v = z + σ ε after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from glr_dist.chain import chain
from glr_dist.checks import check_examples_apart, check_gradients_are_derivatives, unkeyed_randomness_is_an_error
from glr_dist.compiled import eager
from glr_dist.errors import SiteError
from glr_dist.nn.batch_norm import STATISTICS, SharedBatchNorm, Statistics
from glr_dist.nn.dropout import KEYED
from glr_dist.nn.noisy_weights import Weights
from glr_dist.outputs import Output, call, selected
from glr_dist.sites import DEFAULT_TYPES, Site, Tape, chosen
from glr_dist.survey import Survey, checkpointed, scripted, survey
from glr_dist.text import hint
from glr_dist.trees import Tree, copied, count, mapped, taken

Visit = Callable[[str, Tensor, Tensor], Tensor]  # (name of the site, input, z) -> v
Uniforms = Callable[[int, Tensor], Tensor]  # (number of the stream, x) -> uniforms of the shape of x

# What the traversal of this thread does at a call of a site's module: (name, module, input, z) -> v.
_CALLED: ContextVar[Callable[[str, nn.Module, Tensor, Tensor], Tensor] | None] = ContextVar(
    "glr_dist_called", default=None
)


class Network:
    """A model seen as a chain of blocks with sites.

    Args:
        model: the network; it is neither copied nor changed.
        types: module types that are sites; the model must contain each of them, except with the default.
        names: patterns of module names; a module's calls are sites when its type and its name match. A pattern
            `!…` excludes what it matches.
        output: chooses the outputs among the values that the model returns (`glr_dist.outputs`).
    """

    def __init__(
        self,
        model: nn.Module,
        types: Sequence[type[nn.Module]] = DEFAULT_TYPES,
        names: Sequence[str] = ("*",),
        output: Output = None,
    ) -> None:
        self.model, self.output = model, output
        self.types, self.names = tuple(types), tuple(names)
        self.parameters: dict[str, nn.Parameter] = {}  # trainable parameters, found by `prepare`
        self.sites: tuple[Site, ...] = ()
        self.prepared_for: tuple[object, ...] | None = None  # the `state` at the last `prepare`
        self.flops = 0.0  # products and convolutions of one example's forward pass
        self.block_flops: tuple[float, ...] = ()  # the same, per block
        self.by_name: dict[str, Site] = {}
        self.output_shape = torch.Size()  # of an example's outputs
        self.head_shape: torch.Size | None = None  # of an example's outputs, if they are the last site's noisy logits
        self._found: Survey | None = None
        self._calls: dict[str, list[str]] = {}  # names of the sites that the calls of a module are
        self._keep_inputs: frozenset[str] = frozenset()
        self._keep_starts: frozenset[int] = frozenset()
        self._look()

    def _look(self) -> None:
        """Finds the blocks, and the modules whose calls are sites."""
        modules = dict(self.model.named_modules())
        self._floating = [p for p in self.model.parameters() if p.is_floating_point()]
        self.blocks = chain(self.model)
        named = chosen((name for name, module in modules.items() if isinstance(module, self.types)), self.names)
        self.candidates = {
            name: module for name, module in modules.items() if name in named or isinstance(module, Weights)
        }
        # Blocks are called by the traversal; what lies inside a block is reached by hooks.
        inside = {part for block in self.blocks for part in block.module.modules() if part is not block.module}
        self._top = {block.name for block in self.blocks if block.module not in inside} & self.candidates.keys()
        self._random = {module: i for i, module in enumerate(modules.values())}
        # Modules with hooks of the user's, which may change their input or output.
        self.altered = frozenset(
            name for name, m in self.candidates.items() if m._forward_hooks or m._forward_pre_hooks
        )

    # ------------------------------------------------------------ traversals

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks the nested sites, so that each sees the traversal of the thread that runs it."""

        def hook_of(name: str) -> Callable[..., Tensor | None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
                called = _CALLED.get()
                if called is None and torch._C._current_graph_task_id() != -1:  # a backward pass runs
                    raise SiteError(checkpointed(f"'{name}'"))
                return None if called is None else called(name, module, (*args, *kwargs.values())[0], output)

            return hook

        handles = [
            module.register_forward_hook(hook_of(name), with_kwargs=True)
            for name, module in self.candidates.items()
            if name not in self._top
        ]
        try:
            with eager(self.model):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def run(
        self,
        h: Tree,
        visit: Visit,
        uniforms: Uniforms | None = None,
        start: int = 0,
        stop: int | None = None,
        starts: dict[int, Tree] | None = None,
        keep: Collection[int] = (),
        calls: Counter[nn.Module] | None = None,
        statistics: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Runs blocks start … stop - 1.

        Args:
            h: the chain's value before block `start`; it is not changed.
            visit: returns the noisy logits of each site.
            uniforms: the random numbers of keyed modules; each call of a module has a stream of its own.
            start: index of the first block.
            stop: index after the last block; by default the end of the chain.
            starts: receives the chain's value before the blocks of `keep`.
            keep: indices of blocks.
            calls: counts the calls of each module so far; by default those before block `start`.
            statistics: those of the batch norms, by call; receives what it lacks.

        Raises:
            SiteError: a module runs more often than in the pass that prepared the network.
        """
        found = self._found
        if calls is None:
            calls = Counter(found.calls_before[start] if found else {})
        counts = calls

        def called(name: str, module: nn.Module, x: Tensor, z: Tensor) -> Tensor:
            site = self._site_of(name, counts[module])
            counts[module] += 1
            v = visit(site, x, z)
            return v.clone() if found and site in found.overwritten else v

        overwritten = found.overwritten_starts if found else frozenset()
        if start in overwritten:
            h = mapped(Tensor.clone, h)
        calling, random = _CALLED.set(called), KEYED.set(self._keyed(uniforms, counts))
        shared = STATISTICS.set(self._shared({} if statistics is None else statistics, counts))
        try:
            for index, (name, module) in enumerate(self.blocks[start:stop], start):
                if starts is not None and index in keep:
                    starts[index] = mapped(Tensor.clone, h) if index in overwritten else h
                output = call(module, h) if index == 0 else module(h)
                h = called(name, module, h, output) if name in self._top else output
            return selected(h, self.output) if stop is None or stop == len(self.blocks) else h
        finally:
            _CALLED.reset(calling)
            KEYED.reset(random)
            STATISTICS.reset(shared)

    def whole(self, x: Tree, uniforms: Uniforms | None = None) -> Tensor:
        """Runs the model itself, without noise, with the random numbers that `run` would give its keyed modules."""
        random = KEYED.set(self._keyed(uniforms, Counter()))
        try:
            return selected(call(self.model, x), self.output)
        finally:
            KEYED.reset(random)

    def _keyed(
        self, uniforms: Uniforms | None, counts: Counter[nn.Module]
    ) -> Callable[[nn.Module, Tensor], Tensor] | None:
        """Returns (module, x) -> the uniforms of its next call, which it counts."""
        if uniforms is None:
            return None

        def keyed(module: nn.Module, x: Tensor) -> Tensor:
            stream = self._random[module] + counts[module] * len(self._random)
            counts[module] += 1
            return uniforms(stream, x)

        return keyed

    def _shared(self, store: dict[str, Tensor], counts: Counter[nn.Module]) -> Statistics:
        """Returns (batch norm, compute) -> the statistics of its next call, which it counts."""

        def shared(module: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
            name = f"{self._random[module]}.{counts[module]}"
            counts[module] += 1
            if name not in store:
                store[name] = compute()
            return store[name]

        return shared

    def _site_of(self, name: str, call: int) -> str:
        """Returns the name of the site that the call of a module is."""
        if self._found is None:
            return f"{name}[{call}]"
        sites = self._calls[name]
        if call >= len(sites):
            raise SiteError(_other_calls(name, f"more than {len(sites)}", len(sites)))
        return sites[call]

    def record(
        self,
        x: Tree,
        noisy: Callable[[Site, Tensor], Tensor],
        uniforms: Uniforms | None = None,
        keep: Collection[int] | None = None,
        statistics: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tape]:
        """Runs a whole pass; returns the outputs, and the tape without its losses.

        Args:
            x: inputs, a tree of tensors [N, …].
            noisy: (site, z) -> v.
            uniforms: the random numbers of keyed modules.
            keep: indices of the blocks whose inputs the tape keeps; by default those that segments start from.
            statistics: those of the batch norms; by default the pass's own.
        """
        tape = Tape(statistics={} if statistics is None else dict(statistics))
        overwritten, n = self._found.overwritten_inputs if self._found else frozenset(), count(x, "x")

        def visit(name: str, inputs: Tensor, z: Tensor) -> Tensor:
            if z.shape[1:] != self.by_name[name].shape or len(z) % n:
                raise SiteError(_other_shape(name, tuple(z.shape), tuple(self.by_name[name].shape)))
            tape.logits[name] = z
            if name in self._keep_inputs:
                # An actor's tape, too, is contiguous: the bits of a product depend on it.
                tape.inputs[name] = inputs.clone() if name in overwritten else inputs.contiguous()
            return noisy(self.by_name[name], z)

        outputs = self.run(
            x,
            visit,
            uniforms,
            starts=tape.starts,
            keep=self._keep_starts if keep is None else keep,
            statistics=tape.statistics,
        )
        if len(tape.logits) < len(self.sites):
            self._raise_fewer_calls(tape)
        return outputs, tape

    def replay(
        self,
        site: Site,
        tape: Tape,
        v: Tensor,
        noisy: Callable[[Site, Tensor], Tensor],
        uniforms: Uniforms | None = None,
    ) -> Tensor:
        """Returns the outputs [C·N, …] for noisy logits v [C·N, *S] of `site`; what precedes it is as on the tape."""
        if site.top:
            return self.run(
                v, lambda name, _, z: noisy(self.by_name[name], z), uniforms, site.block + 1, statistics=tape.statistics
            )
        h = tape.starts[site.block]
        h = copied(h, len(v) // count(h, "x"))
        return self.run(
            h,
            lambda name, _, z: v if name == site.name else noisy(self.by_name[name], z),
            uniforms,
            site.block,
            statistics=tape.statistics,
        )

    def _raise_fewer_calls(self, tape: Tape) -> None:
        for name, sites in self._calls.items():
            if (ran := sum(site in tape.logits for site in sites)) < len(sites):
                raise SiteError(_other_calls(name, str(ran), len(sites)))

    def statistics(self) -> dict[str, Tensor]:
        """Returns zeros in the shape of each statistic of a pass, by call."""
        return {} if self._found is None else dict(self._found.statistics)

    def move_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Moves the running statistics of the batch norms by those of a step."""
        modules = list(self._random)
        for name, value in statistics.items():
            module = modules[int(name.partition(".")[0])]
            assert isinstance(module, SharedBatchNorm)
            module.move(value)

    # ------------------------------------------------------------ preparation

    @property
    def state(self) -> tuple[object, ...]:
        """The modules, their modes, hooks and buffers, and the parameters.

        The checks, the ownership and the compiled functions depend on them.
        """
        return tuple(
            (
                *(id(m), id(type(m)), m.training, *m._forward_hooks, *m._forward_pre_hooks),
                *((name, _kind(buffer)) for name, buffer in m._buffers.items()),
                *((id(p), p.requires_grad, *_kind(p)) for p in m._parameters.values() if p is not None),
            )
            for m in self.model.modules()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Notes whether the network is prepared for its present state, which names its objects."""
        return {**self.__dict__, "prepared_for": self.prepared_for == self.state}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        """Restores a copy, which is prepared if the original was."""
        self.__dict__.update(attributes)
        self.prepared_for = self.state if attributes["prepared_for"] else None

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network."""
        return next((p.dtype for p in self._floating), torch.get_default_dtype())

    def prepare(self, x: Tree, *, estimated: bool = True, keep_inputs: Callable[[Site], bool]) -> None:
        """Finds the sites and their segments by running two examples, and checks the network.

        Args:
            x: a batch of inputs, a tree of tensors [N, …].
            estimated: True if gradients come from the sites, False if from autograd, which reaches every parameter.
            keep_inputs: returns True if a site's parameter gradients are formed from its input alone.

        Raises:
            SiteError: the network has no site; a module that should be a site does not run; BatchNorm is in training
                mode; a module draws unkeyed randomness; the output of a block is not one batch-first tensor; no
                segment owns a trainable parameter.
        """
        self._look()
        self._found = None
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.candidates and estimated:
            raise SiteError(
                "the network has no site: no module matches the site types and name patterns" + scripted(self.model)
            )
        if self.candidates:
            self._check_matched()
        check_examples_apart(self.model)
        check_gradients_are_derivatives(self.model)
        with self.hooked(), unkeyed_randomness_is_an_error(self.model):
            found = survey(
                self.run,
                self.blocks,
                self.candidates,
                self._top,
                self.parameters,
                taken(x, slice(2)),
                scripted(self.model),
                estimated=estimated,
            )
        names = {module: name for name, module in self.candidates.items()}
        self._calls = {name: [] for name in self.candidates}
        for site in found.sites:
            self._calls[names[site.module]].append(site.name)
        self.sites, self.by_name = found.sites, {site.name: site for site in found.sites}
        self.block_flops, self.flops = found.block_flops, sum(found.block_flops)
        direct = {site.name for site in self.sites if keep_inputs(site)}
        self._keep_inputs = frozenset(direct)
        self._keep_starts = frozenset(
            {site.start for site in self.sites if site.name not in direct}
            | {site.block for site in self.sites if not site.top}
        )
        self._found, self.head_shape, self.output_shape = found, found.head_shape, found.output_shape
        self.prepared_for = self.state

    def _check_matched(self) -> None:
        """Refuses a type or a pattern that matches nothing, except in the defaults: a misspelt one must not pass."""
        modules = dict(self.model.named_modules())
        if self.types != DEFAULT_TYPES:
            for kind in self.types:
                if not any(isinstance(module, kind) for module in modules.values()):
                    raise SiteError(f"sites: the network does not contain the type {kind.__name__}; leave it out")
        found = [name for name, module in modules.items() if isinstance(module, self.types)]
        for pattern in self.names:
            wanted = pattern.removeprefix("!")
            if wanted != "*" and not any(fnmatchcase(name, wanted) for name in found):
                raise SiteError(f"site names: the pattern '{pattern}' matches no site; {hint(wanted, found)}")


def _kind(tensor: Tensor | None) -> tuple[object, ...]:
    """Returns the dtype, shape and device of a parameter or buffer; nothing of a lazy one, or where there is none."""
    return () if tensor is None or is_lazy(tensor) else (tensor.dtype, tensor.shape, tensor.device)


def _other_calls(name: str, ran: str, expected: int) -> str:
    return (
        f"'{name}' ran {ran} times in a pass, {expected} times when the network was prepared: every pass must make the "
        "same calls; pad the inputs to one length, or call prepare(x) again for the batches of another length"
    )


def _other_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"site '{name}' returns shape {shape}, [N, {', '.join(map(str, expected))}] when the network was prepared: put "
        "the examples first; pad the inputs to one length, or call prepare(x) again for the batches of another length"
    )
