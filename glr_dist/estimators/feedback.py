"""Learned feedback: a linear map from the output error to δ, as a control variate for redraws or in their place.

With f = α A e, where e is the derivative of the shared pass's loss by the network's outputs, the estimate of a site is

    δ̂ = (1/σ) E[(L - b - σ fᵀε) s(ε)] + f

It is unbiased for any f that does not depend on the redrawn ε, since E[ε s(ε)ᵀ] = I under every law. Its variance falls
where fᵀ(v - z) predicts the change of the loss. A is the ridge regression of the δ̂ of past steps on their e, and α in
[0, 1] the multiple of it that has predicted the δ̂ of later steps best.

Used as `biased`, the gradient is formed from (1 - α) δ̂ + α f instead: as far as the map has predicted them, it takes
the place of the redraws, whose noise and whose correction are both left out.

    C ← γ C + Σ_n δ̂_n e_nᵀ / N,   S ← γ S + Σ_n e_n e_nᵀ / N,   A = C (S + λI)⁻¹

Shapes: N examples, D units of a site, E outputs of an example.

Reference:
    Akrout, Wilson, Humphreys, Lillicrap, Tweed: Deep Learning without Weight Transport, NeurIPS 2019, for feedback that
    is learned; Lansdell, Prakash, Kording: Learning to Solve the Credit Assignment Problem, ICLR 2020, for learning it
    from perturbations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from glr_dist.errors import ConfigError, NoGradientError
from glr_dist.losses import per_example
from glr_dist.sites import Site

OUTPUTS = "outputs"  # key of S
_MOST = 1024  # outputs: S is decomposed in every step
_DECAY = 0.98  # γ: a memory of 50 steps
_RIDGE = 1e-3  # λ, relative to the mean of S's diagonal


def moments_key(site: str) -> str:
    """Returns the key of a site's C."""
    return f"site {site}"


def errors_of(losses: Tensor, outputs: Tensor) -> Tensor:
    """Returns e [N, E], the derivatives of the losses [N] by the outputs [N, …].

    Raises:
        NoGradientError: the losses do not have a derivative.
    """
    losses = per_example(losses, len(outputs))
    if not losses.requires_grad:
        raise NoGradientError(
            "estimator.feedback: needs the derivative of the loss, which does not have one; use "
            "'none', or a loss with estimator.head 'expected'"
        )
    (errors,) = torch.autograd.grad(losses, outputs, torch.ones_like(losses), materialize_grads=True)
    return errors.flatten(1).contiguous()


class FeedbackMap(NamedTuple):
    """The map of a site.

    Attributes:
        matrix: α A [D, E].
        multiple: α, a scalar.
    """

    matrix: Tensor
    multiple: Tensor


class Feedback:
    """The moments of past steps, by which the maps of all sites are fitted."""

    def __init__(self) -> None:
        self._moments: dict[str, Tensor] = {}  # S and each C
        self._explained: dict[str, Tensor] = {}  # site -> Σ ⟨δ̂, A e⟩ and Σ |A e|²

    def maps(self, sites: Iterable[Site], outputs: int, like: Tensor) -> dict[str, FeedbackMap]:
        """Returns the map of each site; zero until it has been fitted and has predicted a later step.

        Raises:
            ConfigError: the network has too many outputs.
        """
        if outputs > _MOST:
            raise ConfigError(
                f"estimator.feedback: is not allowed: the network has {outputs:,} outputs for an "
                f"example, at most {_MOST:,} are"
            )
        found = {}
        for site in sites:
            multiple = self.multiple(site.name)
            zeros = like.new_zeros(site.units, outputs)
            matrix = (multiple * self._fitted(site.name)).to(zeros) if multiple > 0 else zeros
            found[site.name] = FeedbackMap(matrix, like.new_tensor(multiple))
        return found

    def update(self, moments: Mapping[str, Tensor]) -> None:
        """Folds in the moments of a step, after testing by them the maps that were fitted before it."""
        step = {name: moment.double() for name, moment in moments.items()}
        errors = step[OUTPUTS]
        for name, moment in step.items():
            if name == OUTPUTS or name not in self._moments:
                continue
            site = name.removeprefix(moments_key(""))
            a = self._fitted(site)
            now = torch.stack([(a * moment).sum(), (a @ errors * a).sum()])
            self._explained[site] = _DECAY * self._explained.get(site, torch.zeros_like(now)) + now
        for name, moment in step.items():
            self._moments[name] = _DECAY * self._moments[name] + moment if name in self._moments else moment

    def _fitted(self, site: str) -> Tensor:
        """Returns A [D, E]."""
        s, c = self._moments[OUTPUTS], self._moments[moments_key(site)]
        ridge = _RIDGE * s.diagonal().mean()
        if ridge == 0:
            return torch.zeros_like(c)
        a: Tensor = torch.linalg.solve(s + ridge * torch.eye(len(s), dtype=s.dtype, device=s.device), c.T).T
        return a

    def multiple(self, site: str) -> float:
        """Returns α of a site's map."""
        along, squares = self._explained.get(site, torch.zeros(2)).tolist()
        return min(max(along / squares, 0.0), 1.0) if squares > 0 else 0.0

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Returns what a resumed run needs."""
        return {"moments": dict(self._moments), "explained": dict(self._explained)}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continues from a state."""
        self._moments, self._explained = dict(state["moments"]), dict(state["explained"])
