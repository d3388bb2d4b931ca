"""What a network must not do: couple the examples of a batch, draw unkeyed randomness, return anything but [N, …]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from glr_dist.errors import SiteError


def check_examples_apart(model: nn.Module) -> None:
    """Raises a SiteError that names a BatchNorm in training mode."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise SiteError(
                f"'{name}' is a {type(module).__name__} in training mode, which couples the examples of a batch: "
                "use LayerNorm or GroupNorm, or put it in evaluation mode"
            )


def check_batch_first(what: str, output: object, batch: int) -> None:
    """Raises a SiteError unless the output is one tensor whose first dimension is the batch."""
    if not isinstance(output, Tensor):
        raise SiteError(f"{what} returns a {type(output).__name__}, must return one tensor [N, …]")
    if output.dim() == 0 or output.shape[0] != batch:
        raise SiteError(f"{what} returns shape {tuple(output.shape)} for {batch} examples, must return [N, …]")


@contextmanager
def unkeyed_randomness_is_an_error(model: nn.Module) -> Iterator[None]:
    """Raises a SiteError that names the innermost module that advances a global random generator."""

    def state() -> bytes:
        states = [torch.get_rng_state()]
        if torch.cuda.is_available():
            states.append(torch.cuda.get_rng_state())
        return b"".join(s.numpy().tobytes() for s in states)

    before: dict[str, bytes] = {}
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: object, name: str = name) -> None:
            before[name] = state()

        def leave(module: nn.Module, args: object, output: object, name: str = name) -> None:
            if state() != before[name]:
                raise SiteError(
                    f"'{name}' ({type(module).__name__}) draws from torch's global generator: use a keyed module, "
                    "such as glr_dist.nn.Dropout, or put it in evaluation mode"
                )

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite: 0 · x is NaN where x is either, and its sum takes a tenth of `isfinite`."""
    return not bool((tensor * 0).sum().isnan())
