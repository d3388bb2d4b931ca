"""`replicas` in each worker: it estimates from its own example blocks and all-reduces the gradients.

A share is divided by the size of the whole batch, and noise is keyed by the example block, so the sum over the workers
equals the estimate of `inline` up to the order of the additions. Every worker makes the same optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import distributed

from glr_dist.errors import UserError
from glr_dist.estimators import Estimator, Gradients, Step
from glr_dist.estimators.feedback import OUTPUTS, moments_key
from glr_dist.execution.inline import Inline

A = TypeVar("A")


class LostReplicaError(RuntimeError):
    """Raised when the sum over the replicas fails: a process or its network connection has ended."""


class OtherReplicaError(UserError):
    """Raised on the other replicas when one of them fails."""


class Replicas(Inline):
    """Estimates from this process's share of the example blocks, and sums over all processes of `torch.distributed`.

    All processes hold equal parameters, call `gradients` with the same batch, and get the same bits. A process without
    a block of the batch adds zeros. The process group must be initialized before the first step, as Ray Train does in
    its workers; to train a configuration on Ray Train, use `glr_dist.train` with `execution.kind: replicas`.

    Args:
        threads: number of threads that compute work items in this process; torch's own number by default.
    """

    decides_alone = False

    def gradients(self, estimator: Estimator, step: Step, check: Callable[[], None] = lambda: None) -> Gradients:
        """Returns the estimate from the whole batch.

        Raises:
            UserError: `torch.distributed` has no process group.
            OtherReplicaError: another process failed; that process raises its own error.
            LostReplicaError: another process has ended.
        """
        if not distributed.is_available() or not distributed.is_initialized():
            raise UserError(
                "Replicas: torch.distributed has no process group; call torch.distributed.init_process_group in every "
                "process, or train with execution.kind=replicas"
            )
        replica = distributed.get_rank(), distributed.get_world_size()
        share, error_here = Gradients(), None
        try:
            share = super().gradients(estimator, replace(step, replica=replica), check)
        except (UserError, FloatingPointError) as error:
            error_here = error  # without the all-reduce below, the others would wait forever
        total, errors = summed(share, step, errors=1 if error_here else 0)
        if errors:
            raise error_here or OtherReplicaError("another replica failed")
        return total


def summed(share: Gradients, step: Step, errors: int = 0) -> tuple[Gradients, int]:
    """Sums the shares, and the numbers of errors, of all processes: one all-reduce of a flat vector per dtype.

    The network alone decides the layout, so that it is the same in a process that computed nothing.

    Args:
        share: the share of this process; a gradient that it does not hold counts as zero.
        step: names the parameters and the learned scales.
        errors: number of errors in this process.
    """
    scalar = torch.zeros((), dtype=step.network.dtype, device=step.device)
    given = Gradients(
        {**share.grads, "": share.loss}, {**share.scales, "": scalar + errors}, scalar, share.statistics, share.moments
    )
    likes = {("grads", ""): scalar, ("scales", ""): scalar}
    likes |= {("grads", name): parameter for name, parameter in step.network.parameters.items()}
    likes |= {("scales", name): parameter for name, parameter in step.log_scales.items()}
    likes |= {("statistics", name): zeros for name, zeros in step.network.statistics().items()}
    for site, feedback in step.feedback.items():
        outputs = feedback.matrix.shape[1]
        likes["moments", moments_key(site)] = feedback.matrix
        likes["moments", OUTPUTS] = feedback.matrix.new_zeros(outputs, outputs)
    total = Gradients()
    for dtype in dict.fromkeys(like.dtype for like in likes.values()):
        slots = {key: like for key, like in likes.items() if like.dtype == dtype}
        flat = torch.zeros(sum(like.numel() for like in slots.values()), dtype=dtype, device=step.device)
        pieces = torch.split(flat, [like.numel() for like in slots.values()])
        for (kind, name), piece in zip(slots, pieces, strict=True):
            if (value := getattr(given, kind).get(name)) is not None:
                piece.copy_(value.reshape(-1))
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:  # gloo does not have an error class of its own
            reason = str(error).strip().splitlines()[-1]
            raise LostReplicaError(f"the sum over the replicas failed ({reason})") from error
        for ((kind, name), like), piece in zip(slots.items(), pieces, strict=True):
            getattr(total, kind)[name] = piece.view_as(like)
    total.loss = total.grads.pop("")
    return total, int(total.scales.pop("").item())


def begun_alike(begin: Callable[[], A], state: Callable[[A], object]) -> A:
    """Calls `begin` in every process and checks that they all start from the same state.

    Args:
        begin: makes the object that this process starts from, which the function returns.
        state: returns a plain value that differs between different objects.

    Raises:
        UserError, FloatingPointError: raised by `begin`; the other processes raise OtherReplicaError.
        RuntimeError: the states differ.
    """
    begun, error_here = None, None
    try:
        begun = begin()
    except (UserError, FloatingPointError) as error:
        error_here = error
    states: list[object] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, None if begun is None else state(begun))
    if error_here:
        raise error_here
    if None in states:
        raise OtherReplicaError("another replica failed")
    if any(other != states[0] for other in states):
        raise RuntimeError(f"the replicas start from different states: {states}")
    assert begun is not None
    return begun
