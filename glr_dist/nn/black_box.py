"""A part that is not torch, in the middle of a network: a numpy or scikit-learn function, a codec, a look-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glr_dist.errors import UserError
from glr_dist.text import shown


class BlackBox(nn.Module):
    """Applies a function of numpy arrays to a batch [N, …]; no gradient passes through it.

    The layers before it train by the noise at their sites, the layers behind it by whatever gradient they have. The
    function must return the same values for the same example, alone and in any batch, which the verification of `GLR`
    checks; several threads may call it at a time, and on Ray actors it is pickled.

    Args:
        function: takes an array of its own [N, …], or one example [...] if `each` is true; returns an array-like of
            numbers [N, …], or those of the example.
        each: call the function once per example.
        shape: shape of an example of the result, which is then checked in each call.

    Raises:
        UserError: on a call, if the function returns something else than numbers [N, *shape].
    """

    def __init__(
        self, function: Callable[[Any], Any], *, each: bool = False, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not callable(function):
            raise UserError(f"BlackBox: {shown(function)} is not allowed: a function of an array")
        self.function, self.each = function, each
        self.shape = None if shape is None else tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        given = np.array(x.detach().cpu().numpy())  # a copy: the function may write to it
        found = [self.function(example) for example in given] if self.each else self.function(given)
        values = self._checked(found, len(x))
        return torch.as_tensor(values).to(device=x.device, dtype=x.dtype if values.dtype.kind == "f" else None)

    def _checked(self, found: Any, n: int) -> np.ndarray[Any, np.dtype[Any]]:
        """Returns the result as an array of numbers [n, *shape]."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        wanted = "[N, …]" if self.shape is None else f"[N, {', '.join(map(str, self.shape))}]"
        try:
            values = np.asarray(found)
        except ValueError as error:  # the examples have several shapes
            raise UserError(f"BlackBox: {name} must return numbers {wanted} ({error})") from None
        fits = values.ndim > 0 and len(values) == n and self.shape in (None, values.shape[1:])
        if values.dtype.kind not in "fiub" or not fits:
            raise UserError(
                f"BlackBox: {name} returns {values.dtype} of shape {list(values.shape)} for {n} examples, must return "
                f"numbers {wanted}"
            )
        return np.ascontiguousarray(values)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)
