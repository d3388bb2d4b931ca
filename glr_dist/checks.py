"""Checks of a network: it must keep examples apart, draw keyed randomness only, and return one tensor [N, …]."""

from __future__ import annotations

import cmath
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


def check_gradients_are_derivatives(model: nn.Module) -> None:
    """Refuses embeddings whose gradient is scaled by the frequency of the tokens in a batch.

    Raises:
        SiteError: names the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.scale_grad_by_freq:
            raise SiteError(
                f"'{name}' ({type(module).__name__}) scales its gradient by the frequency of the tokens in a batch: "
                "an estimate adds up examples, so set scale_grad_by_freq=False"
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


def check_batch_first(what: str, output: object, batch: int, remedy: str) -> None:
    """Refuses an output that is not one tensor [batch, …]; the error ends with the remedy.

    Raises:
        SiteError: names `what` returned it.
    """
    if not isinstance(output, Tensor):
        raise SiteError(f"{what} returns a {type(output).__name__}, must return one tensor [N, …]; {remedy}")
    if output.dim() == 0 or output.shape[0] != batch:
        raise SiteError(
            f"{what} returns shape {tuple(output.shape)} for {batch} examples, must return [N, …]; {remedy}"
        )


def hookable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Returns the modules of a model by name, without scripted ones, which accept no hook."""
    return ((name, m) for name, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule))


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
    for name, module in hookable(model):

        def enter(module: nn.Module, args: object, name: str = name) -> None:
            before[name] = state()

        def leave(module: nn.Module, args: object, output: object, name: str = name) -> None:
            if state() != before[name]:
                raise SiteError(
                    f"'{name}' ({type(module).__name__}) draws from torch's global generator: use a keyed module, "
                    "such as glr_dist.nn.Dropout, or one that draws nothing, or put it in evaluation mode; "
                    "glr_dist.nn.fixed(model) replaces torch's dropout modules, functional dropout needs p = 0"
                )

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def all_finite(tensor: Tensor) -> bool:
    """Returns True if no element is NaN or infinite.

    A sum takes a tenth of the time of `isfinite`. If finite elements overflow it, the sum of 0 · x decides, which is
    NaN where an x is either.
    """
    # Python's functions take complex numbers, too, and less time than torch's on one number.
    return cmath.isfinite(tensor.sum().item()) or not cmath.isnan((tensor * 0).sum().item())
