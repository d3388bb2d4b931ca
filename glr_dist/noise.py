"""Noise laws: how ε is drawn, and its score s(ε) = -d/dε log p(ε)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from glr_dist.errors import ConfigError
from glr_dist.streams import uniforms


@dataclass(frozen=True)
class Noise(ABC):
    """Noise that a network's sites add to their logits: v = z + scale · ε.

    Args:
        scale: σ > 0 in units of the logits; a mapping of site-name patterns gives one for each site.
        learn: "none", or a learnable log σ for each "site" or each "unit" of a site.
        floor: the least σ that learning may reach.

    Raises:
        ConfigError: a scale or the floor is not positive, or `learn` is unknown.
    """

    scale: float | Mapping[str, float] = 1.0
    learn: str = "none"
    floor: float = 1e-3
    law: ClassVar[str]

    def __post_init__(self) -> None:
        scales = self.scale if isinstance(self.scale, Mapping) else {"": self.scale}
        for name, value in [
            *((f"scale {name}".strip(), value) for name, value in scales.items()),
            ("floor", self.floor),
        ]:
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"noise {name}: {value} is not allowed: a finite number > 0")
        if self.learn not in ("none", "site", "unit"):
            raise ConfigError(f"noise learn: {self.learn!r} is not allowed: 'none', 'site' or 'unit'")

    def sample(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        """ε of unit scale, drawn from `stream`."""
        return self.quantile(uniforms(shape, stream)).to(dtype)

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The inverse CDF of the law at u in (0, 1)."""

    @abstractmethod
    def score(self, eps: Tensor) -> Tensor:
        """s(ε) = -d/dε log p(ε), elementwise."""


@dataclass(frozen=True)
class Gaussian(Noise):
    """p(ε) = exp(-ε²/2) / √(2π), score ε."""

    law: ClassVar[str] = "gaussian"

    def sample(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.randn(tuple(shape), generator=stream, dtype=dtype, device=stream.device)

    def quantile(self, u: Tensor) -> Tensor:
        eps: Tensor = torch.special.ndtri(u)
        return eps

    def score(self, eps: Tensor) -> Tensor:
        return eps


@dataclass(frozen=True)
class Laplace(Noise):
    """p(ε) = exp(-|ε|) / 2, score sign(ε). The law of the paper's experiments."""

    law: ClassVar[str] = "laplace"

    def quantile(self, u: Tensor) -> Tensor:
        return torch.where(u < 0.5, (2 * u).log(), -(2 * (1 - u)).log())

    def score(self, eps: Tensor) -> Tensor:
        return eps.sign()


@dataclass(frozen=True)
class Logistic(Noise):
    """p(ε) = e^-ε / (1 + e^-ε)², score tanh(ε/2)."""

    law: ClassVar[str] = "logistic"

    def quantile(self, u: Tensor) -> Tensor:
        eps: Tensor = torch.special.logit(u)
        return eps

    def score(self, eps: Tensor) -> Tensor:
        return (eps / 2).tanh()


LAWS: dict[str, type[Noise]] = {law.law: law for law in (Gaussian, Laplace, Logistic)}
