"""The survey of a network: one pass of two examples, which finds its sites, their segments and what they cost.

Shapes: N examples, z [N, *S] the logits of a site before noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from glr_dist.chain import Block
from glr_dist.checks import check_batch_first
from glr_dist.errors import SiteError
from glr_dist.sites import Site
from glr_dist.streams import Key, Role, generator
from glr_dist.trees import Tree, cloned, count, leaves, same_memory


@dataclass
class _Call:
    """One call of a site's module in the pass: its input x, its logits z, and their versions then."""

    module: str
    block: int
    x: Tensor
    z: Tensor
    versions: tuple[int, int]


@dataclass
class Survey:
    """The sites and segments of a network, as a pass of two examples shows them.

    Attributes:
        sites: the sites in the order of their calls.
        calls_before: calls of each module before each block; the last entry counts those of the whole pass.
        block_flops: FLOPs of each block's products and convolutions, for one example.
        statistics: zeros in the shape of the statistics of each call of a batch norm.
        output_shape: shape of one example's outputs.
        head_shape: shape of one example's outputs, if they are the last site's noisy logits as they are; else None.
        overwritten: names of sites whose noisy logits a later operation changes in place.
        overwritten_inputs: names of sites whose input a later operation changes in place.
        overwritten_starts: indices of blocks before which the chain's value is changed in place later.
    """

    sites: tuple[Site, ...]
    calls_before: list[dict[nn.Module, int]]
    block_flops: tuple[float, ...]
    statistics: dict[str, Tensor]
    output_shape: torch.Size
    head_shape: torch.Size | None
    overwritten: frozenset[str]
    overwritten_inputs: frozenset[str]
    overwritten_starts: frozenset[int]


def survey(
    run: Callable[..., Tensor],
    blocks: Sequence[Block],
    candidates: Mapping[str, nn.Module],
    top: set[str],
    parameters: Mapping[str, nn.Parameter],
    x: Tree,
    hint: str = "",
    *,
    estimated: bool,
) -> Survey:
    """Runs a pass of a few examples, with autograd inside each segment.

    Args:
        run: `Network.run`.
        blocks: the chain.
        candidates: the modules whose calls are sites, by name.
        top: names of those that are blocks of the chain.
        parameters: the trainable parameters, by name.
        x: inputs, a tree of tensors [N, …]; they are not changed.
        hint: ends the error about a parameter that no site owns.
        estimated: True if gradients come from the sites, False if from autograd, which reaches every parameter.

    Raises:
        SiteError: a candidate does not run; the output of a block or a site is not one batch-first tensor; no segment
            owns a trainable parameter; an operation in place destroys what a gradient needs.
    """
    found: dict[str, _Call] = {}
    calls: Counter[nn.Module] = Counter()
    calls_before: list[dict[nn.Module, int]] = []
    starts: list[tuple[Tree, int]] = []
    n = count(x, "x")
    clean, flops, widths = [], [], []
    stream = generator(Key(0, role=Role.DROPOUT), leaves(x)[0].device)
    block = 0
    statistics: dict[str, Tensor] = {}

    def visit(name: str, inputs: Tensor, z: Tensor) -> Tensor:
        module = name.rpartition("[")[0]
        check_batch_first(
            f"site '{module}'", z, n, f"put the examples first, or leave it out: '!{module}' among the site names"
        )
        found[name] = _Call(module, block, inputs, z, (_version(inputs), _version(z)))
        return z.detach()  # shares its version with z

    def uniforms(_: int, x: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=stream, device=x.device)

    h = cloned(x)
    with torch.enable_grad():
        for block, (name, _) in enumerate(blocks):
            clean.append(not any(leaf.requires_grad for leaf in leaves(h)))
            calls_before.append(dict(calls))
            starts.append((h, _version(h)))
            with FlopCounterMode(display=False) as counter:
                h = _run(run, h, visit, uniforms, block, block + 1, calls=calls, statistics=statistics)
            check_batch_first(f"block '{name}'", h, n, "let one module contain it and the block that takes its output")
            flops.append(counter.get_total_flops())
            widths.append(h[0].numel())
    calls_before.append(dict(calls))
    last = next(reversed(found.values()), None)

    if estimated:
        _check_all_ran(candidates, calls)
    total = sum(flops) or 1
    sites = []
    for index, (call, seen) in enumerate(found.items()):
        module = candidates[seen.module]
        is_top = seen.module in top
        suffix = seen.block + 1 if is_top else seen.block
        sites.append(
            Site(
                index=index,
                name=call if calls[module] > 1 else seen.module,
                module=module,
                block=seen.block,
                top=is_top,
                start=max(i for i in range(seen.block + 1) if clean[i]),
                shape=seen.z.shape[1:],
                owned=_reached(f"site '{seen.module}'", seen.z, parameters),
                upstream=_reached(f"site '{seen.module}'", seen.x, parameters),
                suffix=sum(flops[suffix:]) / total,
                width=max([seen.z[0].numel(), *widths[suffix:]]),
            )
        )
    if estimated:
        _check_owned(sites, _reached("the output", h, parameters), parameters, hint)
    seen_calls = list(zip(sites, found.values(), strict=True))
    return Survey(
        sites=tuple(sites),
        calls_before=calls_before,
        block_flops=tuple(total / n for total in flops),
        statistics={name: torch.zeros_like(value) for name, value in statistics.items()},
        output_shape=h.shape[1:],
        head_shape=h.shape[1:] if last is not None and _is(h, last) else None,
        overwritten=frozenset(site.name for site, seen in seen_calls if _version(seen.z) != seen.versions[1]),
        overwritten_inputs=frozenset(site.name for site, seen in seen_calls if _version(seen.x) != seen.versions[0]),
        overwritten_starts=frozenset(i for i, (start, version) in enumerate(starts) if _version(start) != version),
    )


def _run(run: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    try:
        return run(*arguments, **options)
    except RuntimeError as error:
        if "Inference tensors" not in str(error):
            raise
        raise SiteError(
            "a module runs in torch.inference_mode, which the gradient inside its segment cannot pass: leave it out"
        ) from None


def _is(outputs: Tensor, call: _Call) -> bool:
    """True if the outputs lie in the memory of a call's logits, which was not written after the call."""
    return same_memory(outputs, call.z) and call.z._version == call.versions[1]


def _version(tree: Tree) -> int:
    return sum(0 if leaf.is_inference() else leaf._version for leaf in leaves(tree))


def scripted(model: nn.Module) -> str:
    """Returns the end of a message: the first scripted or traced module of a model with layers inside; or ''."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.children()):
            what = f"'{name}'" if name else "the network"
            return f"; {what} is scripted, which hides its layers: use the module before torch.jit"
    return ""


def checkpointed(what: str) -> str:
    """Returns the message for a module that runs again in a backward pass."""
    return (
        f"{what} is inside torch.utils.checkpoint, which runs it again in a backward pass, without the noise: call it "
        "without checkpoint; gradients stay inside short segments, which need little memory"
    )


def _reached(what: str, output: Tensor, parameters: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """Returns the names of the parameters that a tensor depends on within its segment."""
    if not output.requires_grad:
        return ()
    ones = torch.ones_like(output)  # the sum of the output would have no graph if the caller had turned autograd off
    try:
        grads = torch.autograd.grad(output, list(parameters.values()), ones, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise SiteError(checkpointed(f"a module before {what}")) from None
        if "inplace operation" not in str(error):
            raise
        raise SiteError(
            f"{what}: an operation changes in place a tensor that the gradient inside its segment needs: use the "
            f"operation that returns a new tensor, x = x + y in place of x += y ({type(output.grad_fn).__name__})"
        ) from None
    return tuple(name for name, grad in zip(parameters, grads, strict=True) if grad is not None)


def _check_all_ran(candidates: Mapping[str, nn.Module], calls: Mapping[nn.Module, int]) -> None:
    if silent := [name for name, module in candidates.items() if not calls.get(module)]:
        raise SiteError(
            f"{_listed('site', silent)} ran 0 times in one pass: the module is not used, or another computes its "
            f"product; leave it out: {', '.join(repr('!' + name) for name in silent)} among the site names, or open "
            "the module that contains it with glr_dist.nn.opened(model)"
        )


def _check_owned(
    sites: Sequence[Site], after: tuple[str, ...], parameters: Mapping[str, nn.Parameter], hint: str
) -> None:
    owned = {name for site in sites for name in site.owned}
    for name in parameters:
        if name in after or name not in owned:
            raise SiteError(
                f"no site owns the parameter '{name}': "
                + (
                    "it reaches the loss around the sites"
                    if name in after
                    else "no site's logits depend on it by autograd, which no_grad, detach and a reentrant checkpoint "
                    "turn off"
                )
                + "; freeze it, or choose the sites so that its layer is one"
                + hint
            )


def _listed(what: str, names: Sequence[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    return f"{what}{'s' if len(names) > 1 else ''} {quoted}"
