"""Makes torch's operators give the same bits in every call, on every machine of a kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # with which cuBLAS adds in the same order in every call


@contextmanager
def reproducible() -> Iterator[None]:
    """Uses one intra-op thread, and on a GPU deterministic kernels, while the context is open.

    The bits of some operators (sigmoid, QR, sums) depend on the number of threads. On a GPU the fastest gradients of
    convolutions and embeddings add in another order in each call. torch warns of an operator that has no deterministic
    kernel.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if torch.cuda.is_available():  # not only once it is in use: the context may be open when it comes into use
            with _deterministic():
                yield
        else:
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Uses deterministic kernels while the context is open; without filling new tensors with NaN first."""
    os.environ.setdefault(*_WORKSPACE)
    chosen, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=warned or not chosen)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(chosen, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
