"""Noise laws: how ε is drawn, and its score s(ε) = -d/dε log p(ε).

A custom law is a subclass of `Noise`, or any object with its methods `sample` and `score`; `checked` verifies on a
large sample that the two match.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from glr_dist.errors import ConfigError
from glr_dist.registry import LAWS
from glr_dist.streams import Key, Role, generator, uniforms

__all__ = ["LAWS", "Gaussian", "Gumbel", "Laplace", "Logistic", "Noise", "checked", "noise_of"]


@dataclass(frozen=True)
class Noise(ABC):
    """Noise that sites add to their logits: v = z + scale · ε with independent ε of one law.

    A subclass defines `score`, and `quantile` or `sample` or both. With `quantile`, `cdf` and `density`, it also gives
    the expectation of the 0-1 loss. `law` names it in messages; by default the name of the class.

    Args:
        scale: σ > 0 in units of the logits, or a mapping from site-name patterns to σ.
        learn: "none", or a learnable log σ per "site" or per "unit" of a site.
        floor: lower bound of the learned σ.

    Raises:
        ConfigError: a scale or the floor is not positive, or `learn` is unknown.
    """

    scale: float | Mapping[str, float] = 1.0
    learn: str = "none"
    floor: float = 1e-3
    law: ClassVar[str] = ""
    kinked: ClassVar[bool] = False  # the density has a kink at 0
    max_stable: ClassVar[bool] = False  # z_j + ε_j is the largest with probability softmax(z)_j
    far: ClassVar[float] = math.inf  # distance in σ beyond which the higher of two scores counts as certain to stay so

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "law" not in vars(cls):
            cls.law = cls.__name__
        if "far" not in vars(cls):
            cls.far = math.inf  # a subclass of another law may have heavier tails

    def __post_init__(self) -> None:
        scales = self.scale if isinstance(self.scale, Mapping) else {"": self.scale}
        for name, value in [
            *((f"scale {name}".strip(), value) for name, value in scales.items()),
            ("floor", self.floor),
        ]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"noise {name}: {value!r} is not allowed: a finite number > 0")
        if self.learn not in ("none", "site", "unit"):
            raise ConfigError(f"noise learn: {self.learn!r} is not allowed: 'none', 'site' or 'unit'")

    def sample(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draws ε of unit scale with independent elements.

        Args:
            shape: of the result.
            stream: the only source of randomness; the result lies on its device.
            dtype: of the result.
        """
        return self.quantile(uniforms(shape, stream)).to(dtype)

    def quantile(self, u: Tensor) -> Tensor:
        """Returns the inverse CDF of the law at u in (0, 1), elementwise; optional where `sample` is defined.

        Raises:
            ConfigError: the law does not define it.
        """
        raise ConfigError(f"noise law {self.law}: has no quantile(u)")

    @abstractmethod
    def score(self, eps: Tensor) -> Tensor:
        """Returns s(ε) = -d/dε log p(ε), elementwise."""

    def cdf(self, eps: Tensor) -> Tensor:
        """Returns the CDF F(ε), elementwise; optional.

        Raises:
            ConfigError: the law does not define it.
        """
        raise ConfigError(f"noise law {self.law}: has no cdf(eps)")

    def density(self, eps: Tensor) -> Tensor:
        """Returns the density p(ε), elementwise; optional.

        Raises:
            ConfigError: the law does not define it.
        """
        raise ConfigError(f"noise law {self.law}: has no density(eps)")

    def half_width(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draws R ≥ 0 with the density -2 r p'(r): R U has the law if U is uniform on [-1, 1]; optional.

        Takes the arguments of `sample`. A law has such an R if its density is symmetric and unimodal.

        Raises:
            ConfigError: the law does not define it.

        Reference:
            Khinchine: On unimodal distributions, 1938.
        """
        raise ConfigError(f"noise law {self.law}: has no half_width(shape, stream, dtype)")

    @property
    def has_half_width(self) -> bool:
        """True if the law defines `half_width`."""
        return type(self).half_width is not Noise.half_width

    @property
    def has_quantile(self) -> bool:
        """True if the law defines its inverse CDF."""
        return type(self).quantile is not Noise.quantile

    @property
    def has_cdf(self) -> bool:
        """True if the law defines its CDF, the inverse of it, and its density."""
        kind = type(self)
        return self.has_quantile and kind.cdf is not Noise.cdf and kind.density is not Noise.density

    @property
    def symmetric(self) -> bool:
        """True if the law is symmetric about 0, so that its score is odd: s(-ε) = -s(ε)."""
        eps = self.sample((256,), generator(_CHECK), torch.float64)
        score = self.score(eps)
        return torch.allclose(self.score(-eps), -score, rtol=1e-6, atol=1e-6 * score.abs().max().item())


@dataclass(frozen=True)
class Gaussian(Noise):
    """Gaussian noise: p(ε) = exp(-ε²/2) / √(2π), score ε."""

    law: ClassVar[str] = "gaussian"
    far: ClassVar[float] = 8.7  # beyond it the order changes with a probability below 4e-10

    def sample(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.randn(tuple(shape), generator=stream, dtype=dtype, device=stream.device)

    def quantile(self, u: Tensor) -> Tensor:
        eps: Tensor = torch.special.ndtri(u)
        return eps

    def half_width(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        normals = self.sample(shape, stream, dtype)
        return (normals.square() - 2 * uniforms(shape, stream).log().to(dtype)).sqrt()  # χ with 3 degrees of freedom

    def score(self, eps: Tensor) -> Tensor:
        return eps

    def cdf(self, eps: Tensor) -> Tensor:
        below: Tensor = torch.special.ndtr(eps)
        return below

    def density(self, eps: Tensor) -> Tensor:
        return (-eps.square() / 2).exp() / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Laplace(Noise):
    """Laplace noise, as in the paper's experiments: p(ε) = exp(-|ε|) / 2, score sign(ε)."""

    law: ClassVar[str] = "laplace"
    kinked: ClassVar[bool] = True

    def quantile(self, u: Tensor) -> Tensor:
        return torch.where(u < 0.5, (2 * u).log(), -(2 * (1 - u)).log())

    def half_width(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        return -uniforms((2, *shape), stream).log().sum(0).to(dtype)  # a gamma variable of shape 2

    def score(self, eps: Tensor) -> Tensor:
        return eps.sign()

    def cdf(self, eps: Tensor) -> Tensor:
        tail = (-eps.abs()).exp() / 2
        return torch.where(eps < 0, tail, 1 - tail)

    def density(self, eps: Tensor) -> Tensor:
        return (-eps.abs()).exp() / 2


@dataclass(frozen=True)
class Logistic(Noise):
    """Logistic noise: p(ε) = e^-ε / (1 + e^-ε)², score tanh(ε/2)."""

    law: ClassVar[str] = "logistic"

    def quantile(self, u: Tensor) -> Tensor:
        eps: Tensor = torch.special.logit(u)
        return eps

    def score(self, eps: Tensor) -> Tensor:
        return (eps / 2).tanh()

    def cdf(self, eps: Tensor) -> Tensor:
        return eps.sigmoid()

    def density(self, eps: Tensor) -> Tensor:
        return eps.sigmoid() * (-eps).sigmoid()


@dataclass(frozen=True)
class Gumbel(Noise):
    """Gumbel noise: p(ε) = exp(-ε - e^-ε), score 1 - e^-ε.

    It is not symmetric. With one scale for all classes, the largest of z_j + σ ε_j is class j with the probability
    softmax(z / σ)_j.
    """

    law: ClassVar[str] = "gumbel"
    max_stable: ClassVar[bool] = True

    def quantile(self, u: Tensor) -> Tensor:
        return -(-u.log()).log()

    def score(self, eps: Tensor) -> Tensor:
        return 1 - (-eps).exp()

    def cdf(self, eps: Tensor) -> Tensor:
        return (-(-eps.clamp(min=-30)).exp()).exp()  # below: 0, and a derivative that is not inf · 0

    def density(self, eps: Tensor) -> Tensor:
        eps = eps.clamp(min=-30)
        return (-eps - (-eps).exp()).exp()


# ---------------------------------------------------------------- custom laws

_CHECK = Key(0, role=Role.REDRAW)
_DRAWS = 2**16  # of a check
_Z = 6.0  # bound of its deviations in standard errors: chance exceeds it once in 10^9 checks


@dataclass(frozen=True)
class _Adapted(Noise):
    """A law given as an object that is not a subclass of `Noise`."""

    inner: Any = None

    @property
    def law(self) -> str:  # type: ignore[override]  # a name per object, not per class
        return str(getattr(self.inner, "law", type(self.inner).__name__))

    def sample(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        eps: Tensor = self.inner.sample(shape, stream, dtype)
        return eps

    def quantile(self, u: Tensor) -> Tensor:
        eps: Tensor = self.inner.quantile(u)
        return eps

    def score(self, eps: Tensor) -> Tensor:
        score: Tensor = self.inner.score(eps)
        return score

    def cdf(self, eps: Tensor) -> Tensor:
        below: Tensor = self.inner.cdf(eps)
        return below

    def density(self, eps: Tensor) -> Tensor:
        density: Tensor = self.inner.density(eps)
        return density

    def half_width(self, shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        half: Tensor = self.inner.half_width(shape, stream, dtype)
        return half

    @property
    def has_half_width(self) -> bool:
        return callable(getattr(self.inner, "half_width", None))

    @property
    def has_quantile(self) -> bool:
        return callable(getattr(self.inner, "quantile", None))

    @property
    def has_cdf(self) -> bool:
        return all(callable(getattr(self.inner, method, None)) for method in ("quantile", "cdf", "density"))


def noise_of(value: Noise | float | Mapping[str, float] | object | None) -> Noise | None:
    """Returns the noise that a value stands for.

    A number, or a mapping from site-name patterns to numbers, is the scale of Gaussian noise. An object with `sample`
    and `score` is a custom law; its attributes `scale`, `learn` and `floor` are used if it has them.

    Raises:
        ConfigError: the value is not a noise, or its `score` does not match its `sample`.
    """
    if value is None or type(value) in (Gaussian, Gumbel, Laplace, Logistic):
        return value  # type: ignore[return-value]
    if isinstance(value, Mapping) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return Gaussian(value)
    if isinstance(value, Noise):
        return checked(value)
    if not all(callable(getattr(value, method, None)) for method in ("sample", "score")) or isinstance(value, type):
        what = f"the class {value.__name__}; make an object of it" if isinstance(value, type) else repr(value)[:80]
        raise ConfigError(
            f"noise: {what} is not allowed: a scale, an object such as glr_dist.Gaussian(0.3), or a custom law with "
            "the methods sample(shape, stream, dtype) and score(eps)"
        )
    options = {name: getattr(value, name) for name in ("scale", "learn", "floor") if hasattr(value, name)}
    return checked(_Adapted(**options, inner=value))


def checked(noise: Noise) -> Noise:
    """Verifies that the methods of a custom law match, and returns the law.

    A density p that vanishes at the ends of its support has E[s(ε)] = 0 and E[ε s(ε)] = 1. Both are tested on a sample
    of 65,536, as are equal draws from equal streams and, if there is a quantile, the deciles.

    Raises:
        ConfigError: the law fails a test; a gradient estimated with it would be biased.
    """
    where = f"noise law {noise.law}"

    def draw(key: Key) -> Tensor:
        eps = noise.sample((_DRAWS,), generator(key), torch.float64)
        if not isinstance(eps, Tensor) or eps.shape != (_DRAWS,) or eps.dtype != torch.float64:
            raise ConfigError(f"{where}: sample(shape, stream, dtype) must return a tensor of that shape and dtype")
        if not eps.isfinite().all():
            raise ConfigError(f"{where}: sample(shape, stream, dtype) must return finite numbers")
        return eps

    eps = draw(_CHECK)
    if not torch.equal(eps, draw(_CHECK)) or torch.equal(eps, draw(_CHECK._replace(step=1))):
        raise ConfigError(f"{where}: sample(shape, stream, dtype) must draw from `stream`, and from nothing else")
    score = noise.score(eps)
    if not isinstance(score, Tensor) or score.shape != eps.shape or not score.isfinite().all():
        raise ConfigError(f"{where}: score(eps) must return a finite tensor of the shape of eps")
    for name, values, right in (("s(ε)", score, 0.0), ("ε s(ε)", eps * score, 1.0)):
        mean, error = values.mean().item(), (values.std() / _DRAWS**0.5).item()
        if not abs(mean - right) <= _Z * error + 1e-9:
            raise ConfigError(
                f"{where}: score is not that of sample: the mean of {name} is {mean:.3g} ± {error:.1g}, must be "
                f"{right:g}; score is -d/dε log p(ε) at unit scale, of a density that vanishes at both ends"
            )
    if noise.has_quantile:
        for tenth in range(1, 10):
            p = tenth / 10
            below = (eps <= noise.quantile(torch.tensor([p], dtype=torch.float64))).double().mean().item()
            if abs(below - p) > _Z * (p * (1 - p) / _DRAWS) ** 0.5:
                raise ConfigError(f"{where}: quantile({p}) is not that of sample: {below:.3f} of a sample lie below it")
    if noise.has_cdf:
        _check_cdf(noise, where)
    if noise.has_half_width:
        _check_half_width(noise, eps, where)
    return noise


def _check_half_width(noise: Noise, eps: Tensor, where: str) -> None:
    """Refuses half-widths R with which R U, U uniform on [-1, 1], does not have the deciles of a sample ε.

    Raises:
        ConfigError: they do not.
    """
    method = f"{where}: half_width(shape, stream, dtype) must"

    def draw(step: int) -> Tensor:
        half = noise.half_width((_DRAWS,), generator(_CHECK._replace(step=step)), torch.float64)
        if not isinstance(half, Tensor) or half.shape != eps.shape or half.dtype != torch.float64:
            raise ConfigError(f"{method} return a tensor of that shape and dtype")
        if not (half.isfinite() & (half >= 0)).all():
            raise ConfigError(f"{method} return finite numbers >= 0")
        return half

    half, stream = draw(2), generator(_CHECK._replace(step=4))
    if not torch.equal(half, draw(2)) or torch.equal(half, draw(3)):
        raise ConfigError(f"{method} draw from `stream`, and from nothing else")
    spread = half * (2 * torch.rand(_DRAWS, generator=stream, dtype=torch.float64) - 1)
    for tenth in range(1, 10):
        decile = eps.quantile(tenth / 10)
        below = (spread <= decile).double().mean().item()
        if abs(below - tenth / 10) > _Z * (2 * tenth / 10 * (1 - tenth / 10) / _DRAWS) ** 0.5:
            raise ConfigError(
                f"{where}: half_width is not that of sample: {below:.3f} of R U lie below its quantile {tenth / 10:g}"
            )


def _check_cdf(noise: Noise, where: str) -> None:
    """Refuses a CDF that is not the inverse of the quantile, or whose derivative is not the density.

    Raises:
        ConfigError: one of them.
    """
    u = torch.arange(1, 100, dtype=torch.float64) / 100
    at, step = noise.quantile(u), 1e-5
    if not torch.allclose(noise.cdf(at), u, rtol=0, atol=1e-6):
        raise ConfigError(f"{where}: cdf(eps) is not the inverse of quantile(u)")
    derivative = (noise.cdf(at + step) - noise.cdf(at - step)) / (2 * step)
    if not torch.allclose(noise.density(at), derivative, rtol=1e-3, atol=1e-4):
        raise ConfigError(f"{where}: density(eps) is not the derivative of cdf(eps)")
