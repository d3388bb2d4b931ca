"""Cuts a network into segments that end in sites, and runs it with noise at the sites.

A network is a chain of blocks. A *site* is a module call whose output (logits) receives noise: a block of the chain,
or a module nested inside a block, which a forward hook reaches for the time of an estimate. Every traversal of the
chain calls a `visit(name, x, z) -> v`, which returns a site's noisy logits.

Shapes: N examples, z [N, *S] the logits of a site before noise, v = z + σ ε after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from glr_dist.chain import chain
from glr_dist.checks import check_batch_first, check_examples_apart, unkeyed_randomness_is_an_error
from glr_dist.errors import SiteError
from glr_dist.nn.dropout import KEYED, Uniforms
from glr_dist.sites import DEFAULT_TYPES, Site, Tape
from glr_dist.streams import Key, Role, generator
from glr_dist.text import hint

Visit = Callable[[str, Tensor, Tensor], Tensor]

_VISIT: ContextVar[Visit | None] = ContextVar("glr_dist_visit", default=None)  # of this thread's traversal


class Network:
    """A model seen as a chain of blocks with sites.

    Args:
        model: the network; it is neither copied nor changed.
        types: module types that are sites; the model must contain each of them, except with the default.
        names: patterns of the site names; a module is a site when its type and its name match.
    """

    def __init__(
        self,
        model: nn.Module,
        types: Sequence[type[nn.Module]] = DEFAULT_TYPES,
        names: Sequence[str] = ("*",),
    ) -> None:
        self.model = model
        self.types, self.names = tuple(types), tuple(names)
        self.blocks = chain(model)
        self.parameters: dict[str, nn.Parameter] = {}  # trainable parameters, found by `prepare`
        self.candidates: dict[str, nn.Module] = {}
        for name, module in model.named_modules():
            if any(isinstance(module, kind) for kind in types) and any(fnmatchcase(name, pattern) for pattern in names):
                self.candidates[name] = module
        self._top = {block.name for block in self.blocks} & self.candidates.keys()
        self._random = {module: i for i, module in enumerate(model.modules())}
        self.sites: tuple[Site, ...] = ()
        self.prepared_for: tuple[bool, ...] | None = None  # the `mode` at the last `prepare`
        self.flops = 0.0  # products and convolutions of one example's forward pass
        self.block_flops: tuple[float, ...] = ()  # the same, per block
        # Sites with hooks of the user's, which may change their input or output.
        self.altered = frozenset(
            name for name, m in self.candidates.items() if m._forward_hooks or m._forward_pre_hooks
        )
        self.by_name: dict[str, Site] = {}
        self._keep_inputs: frozenset[str] = frozenset()
        self._keep_starts: frozenset[int] = frozenset()

    # ------------------------------------------------------------ traversals

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks the nested sites, so that each sees the traversal of the thread that runs it."""

        def hook_of(name: str) -> Callable[..., Tensor | None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
                visit = _VISIT.get()
                return None if visit is None else visit(name, (*args, *kwargs.values())[0], output)

            return hook

        handles = [
            module.register_forward_hook(hook_of(name), with_kwargs=True)
            for name, module in self.candidates.items()
            if name not in self._top
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(
        self,
        h: Tensor,
        visit: Visit,
        uniforms: Uniforms | None = None,
        start: int = 0,
        stop: int | None = None,
        starts: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Runs blocks start … stop - 1.

        Args:
            h: the chain's value before block `start`.
            visit: returns the noisy logits of each site.
            uniforms: the random numbers of keyed modules.
            start: index of the first block.
            stop: index after the last block; by default the end of the chain.
            starts: receives the chain's value before each block that a tape keeps.
        """
        visiting, keyed = _VISIT.set(visit), KEYED.set(uniforms)
        try:
            for index, (name, module) in enumerate(self.blocks[start:stop], start):
                if starts is not None and index in self._keep_starts:
                    starts[index] = h
                output = module(h)
                h = visit(name, h, output) if name in self._top else output
            return h
        finally:
            _VISIT.reset(visiting)
            KEYED.reset(keyed)

    def record(
        self, x: Tensor, noisy: Callable[[Site, Tensor], Tensor], uniforms: Uniforms | None = None
    ) -> tuple[Tensor, Tape]:
        """Runs a whole pass; returns the outputs, and the tape without its losses. `noisy(site, z) -> v`."""
        tape = Tape()

        def visit(name: str, inputs: Tensor, z: Tensor) -> Tensor:
            tape.logits[name] = z
            if name in self._keep_inputs:
                tape.inputs[name] = inputs
            return noisy(self.by_name[name], z)

        return self.run(x, visit, uniforms, starts=tape.starts), tape

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
            return self.run(v, lambda name, _, z: noisy(self.by_name[name], z), uniforms, site.block + 1)
        h = tape.starts[site.block]
        h = h.repeat(v.shape[0] // h.shape[0], *[1] * (h.dim() - 1))
        return self.run(
            h,
            lambda name, _, z: v if name == site.name else noisy(self.by_name[name], z),
            uniforms,
            site.block,
        )

    def random_index(self, module: nn.Module) -> int:
        """Returns the number of a random module, which names its keyed streams."""
        return self._random[module]

    # ------------------------------------------------------------ preparation

    @property
    def mode(self) -> tuple[bool, ...]:
        """State that the checks and the ownership depend on: training modules and trainable parameters."""
        training = (module.training for module in self.model.modules())
        return (*training, *(parameter.requires_grad for parameter in self.model.parameters()))

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def prepare(self, x: Tensor, *, estimated: bool = True, keep_inputs: Callable[[Site], bool]) -> None:
        """Finds the sites and their segments by running two examples of the batch x [N, …], and checks the network.

        Args:
            x: a batch of inputs.
            estimated: True if gradients come from the sites, False if from autograd, which reaches every parameter.
            keep_inputs: returns True if a site's parameter gradients are formed from its input alone.

        Raises:
            SiteError: the network has no site; a site does not run exactly once; BatchNorm is in training mode; a
                module draws unkeyed randomness; the output of a block is not one batch-first tensor; no segment
                owns a trainable parameter.
        """
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.candidates and estimated:
            raise SiteError("the network has no site: no module matches the site types and name patterns")
        if self.candidates:
            self._check_matched()
        check_examples_apart(self.model)
        with self.hooked(), unkeyed_randomness_is_an_error(self.model):
            self._survey(x[:2].detach(), estimated, keep_inputs)

    def _check_matched(self) -> None:
        """Refuses a type or a pattern that matches nothing, except in the defaults: a misspelt one must not pass."""
        modules = dict(self.model.named_modules())
        if self.types != DEFAULT_TYPES:
            for kind in self.types:
                if not any(isinstance(module, kind) for module in modules.values()):
                    raise SiteError(f"sites: the network does not contain the type {kind.__name__}; leave it out")
        found = [name for name, module in modules.items() if isinstance(module, self.types)]
        for pattern in self.names:
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in found):
                raise SiteError(f"site names: the pattern '{pattern}' matches no site; {hint(pattern, found)}")

    def _survey(self, x: Tensor, estimated: bool, keep_inputs: Callable[[Site], bool]) -> None:
        calls: Counter[str] = Counter()
        logits: dict[str, tuple[int, Tensor]] = {}  # name -> (block, z with its graph)
        clean, flops, widths = [], [], []
        stream = generator(Key(0, role=Role.DROPOUT), x.device)
        block = 0

        def visit(name: str, _: Tensor, z: Tensor) -> Tensor:
            calls[name] += 1
            check_batch_first(f"site '{name}'", z, len(x))
            logits[name] = (block, z)
            return z.detach()

        def uniforms(module: nn.Module, x: Tensor) -> Tensor:
            return torch.rand(x.shape, generator=stream, device=x.device)

        h = x
        with torch.enable_grad():
            for block, (name, _) in enumerate(self.blocks):
                clean.append(not h.requires_grad)
                with FlopCounterMode(display=False) as counter:
                    h = self.run(h, visit, uniforms, block, block + 1)
                check_batch_first(f"block '{name}'", h, len(x))
                flops.append(counter.get_total_flops())
                widths.append(h[0].numel())
        for name in self.candidates:
            if estimated and calls[name] != 1:
                raise SiteError(
                    f"site '{name}' ran {calls[name]} times in one pass, a site must run exactly once: "
                    "leave it out by the site name patterns, or give each call a module of its own"
                )
        parameters = list(self.parameters.values())

        def reached(output: Tensor) -> tuple[str, ...]:
            if not output.requires_grad:
                return ()
            ones = torch.ones_like(
                output
            )  # the sum of the output would have no graph if the caller had turned autograd off
            grads = torch.autograd.grad(output, parameters, ones, allow_unused=True, retain_graph=True)
            return tuple(name for name, grad in zip(self.parameters, grads, strict=True) if grad is not None)

        total = sum(flops) or 1
        sites = []
        for index, (name, (block, z)) in enumerate(logits.items()):
            top = name in self._top
            suffix = block + 1 if top else block
            sites.append(
                Site(
                    index=index,
                    name=name,
                    module=self.candidates[name],
                    block=block,
                    top=top,
                    start=max(i for i in range(block + 1) if clean[i]),
                    shape=z.shape[1:],
                    owned=reached(z),
                    suffix=sum(flops[suffix:]) / total,
                    width=max([z[0].numel(), *widths[suffix:]]),
                )
            )
        if estimated:
            owned = {name for site in sites for name in site.owned}
            after = reached(h)
            for name in self.parameters:
                if name in after or name not in owned:
                    raise SiteError(
                        f"no site owns the parameter '{name}': "
                        + ("it reaches the loss around the sites" if name in after else "no site's logits depend on it")
                        + "; freeze it, or choose the sites so that its layer is one"
                    )
        self.prepared_for = self.mode
        self.block_flops = tuple(count / len(x) for count in flops)
        self.flops = sum(self.block_flops)
        self.sites = tuple(sites)
        self.by_name = {site.name: site for site in sites}
        direct = {site.name for site in sites if keep_inputs(site)}
        self._keep_inputs = frozenset(direct)
        self._keep_starts = frozenset(
            {site.start for site in sites if site.name not in direct} | {site.block for site in sites if not site.top}
        )
