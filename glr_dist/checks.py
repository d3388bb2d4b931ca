"""Checks of a network: it must keep examples apart, draw keyed randomness only, and return one tensor [N, …]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from glr_dist.errors import SiteError
from glr_dist.nn.batch_norm import SharedBatchNorm


def check_examples_apart(model: nn.Module) -> None:
    """Refuses BatchNorm in training mode, which couples the examples of a batch.

    Raises:
        SiteError: names the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise SiteError(
                f"'{name}' is a {type(module).__name__} in training mode, which couples the examples of a batch: "
                "use glr_dist.nn.fixed(model), LayerNorm or GroupNorm, or put it in evaluation mode"
            )


def check_no_shared_statistics(model: nn.Module) -> None:
    """Refuses a SharedBatchNorm in training mode, for an estimator without a shared pass.

    Raises:
        SiteError: names the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, SharedBatchNorm) and module.training:
            raise SiteError(
                f"'{name}' (SharedBatchNorm) needs the statistics of a shared pass, which 'joint' does not have: use "
                "another estimator, or GroupNorm"
            )


def check_batch_first(what: str, output: object, batch: int) -> None:
    """Refuses an output that is not one tensor [batch, …].

    Raises:
        SiteError: names `what` returned it.
    """
    if not isinstance(output, Tensor):
        raise SiteError(f"{what} returns a {type(output).__name__}, must return one tensor [N, …]")
    if output.dim() == 0 or output.shape[0] != batch:
        raise SiteError(f"{what} returns shape {tuple(output.shape)} for {batch} examples, must return [N, …]")


@contextmanager
def unkeyed_randomness_is_an_error(model: nn.Module) -> Iterator[None]:
    """Refuses modules that draw from a global random generator while the context is open.

    Raises:
        SiteError: names the innermost such module.
    """

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
    """Returns True if no element is NaN or infinite.

    0 · x is NaN where x is either, and the sum of that takes a tenth of the time of `isfinite`.
    """
    return not bool((tensor * 0).sum().isnan())
