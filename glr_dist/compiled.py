"""Compiled modules: an estimate runs them eagerly, since its hooks change what a pass computes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Turns `torch.compile` off for the duration of the context if the model contains a compiled module."""
    # The compiler takes a second to import: nothing is compiled where nobody imported it.
    if "torch._dynamo" in sys.modules and any(_is_compiled(module) for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None
