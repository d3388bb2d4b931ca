"""GLR: a module, a noise and an estimator; `estimate` fills `.grad` as `backward` does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glr_dist import config
from glr_dist.checks import all_finite
from glr_dist.errors import UserError
from glr_dist.estimators import ESTIMATORS, Gradients, Step
from glr_dist.execution.base import Executor
from glr_dist.execution.inline import Inline, one_thread
from glr_dist.losses import Loss, cross_entropy
from glr_dist.noise import Gaussian, Noise
from glr_dist.rules import direct_rule
from glr_dist.sites import Network, by_site
from glr_dist.streams import Key, generator


class GLR(nn.Module):
    """Trains `model` without backpropagation.

    J(θ) = mean over examples of E[loss], with noise at the output of every site; `estimators` holds the ways to
    estimate its gradient. Calling the object runs the model without noise. If the noise learns its scales,
    `prepare(x)` must come before the optimizer is built, so that `parameters()` holds them.

    Args:
        model: any module; an `nn.Sequential`, or a module with a method `chain()` that lists its blocks in order, is
            replayed from the redrawn site on; any other module as a whole.
        noise: the law and scale of the noise; None for a noise-free pass (`pathwise` alone).
        estimator: "conditional", "layerwise", "joint" or "pathwise", or a whole `config.Estimator`.
        sites: module types that are sites.
        site_names: patterns of the names of sites.
        seed: names all streams of noise.
        executor: where work items are computed; this process by default.
        **options: other fields of `config.Estimator`: copies, passes, sampler, antithetic, baseline, exact_head, ….

    Raises:
        ConfigError: an option is unknown or not allowed, or a combination would be biased.

    Reference:
        Peng, Xiao, Heidergott, Hong, Lam: A New Likelihood Ratio Method for Training Artificial Neural Networks,
        INFORMS Journal on Computing, 2022.
    """

    def __init__(
        self,
        model: nn.Module,
        noise: Noise | None = Gaussian(1.0),  # noqa: B008  # frozen
        estimator: str | config.Estimator = "conditional",
        *,
        sites: Sequence[type[nn.Module]] = (nn.Linear, nn.Conv2d),
        site_names: Sequence[str] = ("*",),
        seed: int = 0,
        executor: Executor | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(estimator, str):
            estimator = config.build(config.Estimator, {"name": estimator, **options}, "estimator.")
        elif options:
            raise UserError(f"{', '.join(options)}: has no meaning beside a whole config.Estimator; set it there")
        law = config.Noise(law=noise.law if noise else "none", learn=noise.learn if noise else "none")
        self.options = estimator.model_copy(update={"sampler": config.resolve_sampler(estimator, law)})
        config.check_estimator(self.options, law)
        self.model = model
        self.noise = noise
        self.network = Network(model, sites, site_names)
        self.log_scales = nn.ParameterDict()
        self.seed = seed
        self.step = 0
        self.executor = executor or Inline()
        self.estimator = ESTIMATORS[self.options.name]
        self._site_options: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The model's outputs without noise."""
        return self.model(x)  # type: ignore[no-any-return]

    def noisy(self, x: Tensor, key: Key) -> Tensor:
        """The model's outputs in one pass with noise at every site.

        Args:
            x: inputs [N, …].
            key: names the streams of the noise, one for each site.
        """
        self._prepare_for_mode(x)
        noise, network, scales = self.noise, self.network, self.scales()
        assert noise is not None

        def visit(name: str, _: Tensor, z: Tensor) -> Tensor:
            stream = generator(key._replace(site=network.by_name[name].index), z.device)
            return z + scales[name] * noise.sample(z.shape, stream, z.dtype)

        with network.hooked():
            return network.run(x, visit)

    def prepare(self, x: Tensor) -> None:
        """Finds the sites by running two examples of x [N, …].

        `estimate` does it when it has not been done, or not for the model's present mode (training or evaluation).

        Raises:
            SiteError: the network cannot be trained as it is, or a pattern matches no site.
        """
        network = self.network
        estimated = self.options.name != "pathwise"
        network.prepare(x, estimated=estimated, keep_inputs=lambda site: direct_rule(network, site) is not None)
        names = [site.name for site in network.sites]
        direct = {site.name: direct_rule(network, site) for site in network.sites}
        self._site_options = {
            "copies": by_site(self.options.copies, names, "estimator.copies"),
            "passes": by_site(self.options.passes, names, "estimator.passes"),
            "rules": {name: rule for name, rule in direct.items() if rule is not None},
        }
        if self.noise is None:
            return
        for site, scale in zip(network.sites, by_site(self.noise.scale, names, "noise.scale").values(), strict=True):
            shape = site.shape if self.noise.learn == "unit" else torch.Size()
            if scale_key(site.name) not in self.log_scales:
                log_scale = torch.full(shape, math.log(scale), dtype=network.dtype, device=x.device)
                learned = self.noise.learn != "none"
                self.log_scales[scale_key(site.name)] = nn.Parameter(log_scale, requires_grad=learned)

    def _prepare_for_mode(self, x: Tensor) -> None:
        if self.network.prepared_for != self.network.mode:
            self.prepare(x)

    def scales(self) -> dict[str, Tensor]:
        """σ by site name: a scalar, or one for each unit [*S]. Learned ones are first raised to their floor."""
        assert self.noise is not None
        scales = {}
        for site in self.network.sites:
            log_scale = self.log_scales[scale_key(site.name)].data
            if self.noise.learn != "none":
                log_scale.clamp_(min=math.log(self.noise.floor))
            scales[site.name] = log_scale.exp()
        return scales

    def set_scale(self, scale: float | Mapping[str, float]) -> None:
        """Sets σ at every site, from the next step on.

        Args:
            scale: as of the noise: one for all sites, or one for each pattern of site names.

        Raises:
            UserError: there is no noise, or it learns its scales.
            ConfigError: a scale is not positive.
            SiteError: a pattern matches no site, or a site no pattern; before the sites are known, `prepare` says so.
        """
        if self.noise is None:
            raise UserError("set_scale: there is no noise")
        if self.noise.learn != "none":
            raise UserError("set_scale: the scales are learned")
        noise = replace(self.noise, scale=scale)
        if names := [site.name for site in self.network.sites]:
            for name, value in by_site(scale, names, "noise scale").items():
                self.log_scales[scale_key(name)].data.fill_(math.log(value))
        self.noise = noise

    def gradients(self, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> Gradients:
        """One estimate of the gradient of J at the current step, without touching `.grad`.

        Args:
            x: inputs [N, …].
            y: targets [N, …].
            loss: `loss(outputs [B, …], targets [B, …]) -> [B]`; it need not be differentiable.

        Raises:
            SiteError: the network cannot be trained as it is.
            UserError: the loss is not one value per example, the batch is empty, or an option does not fit.
            FloatingPointError: the inputs, the logits, the loss or the gradients are not finite.
        """
        if len(x) == 0 or len(x) != len(y):
            raise UserError(f"x and y must have one length >= 1, got {len(x)} and {len(y)}")
        step = self.bind(x, y, loss)
        with one_thread(), torch.no_grad():
            if x.is_floating_point() and not all_finite(x):
                raise FloatingPointError("the inputs are not finite: x holds NaN or infinity")
            self.executor.begin(self.estimator, step)
            with self.network.hooked():
                total = self.executor.gradients(self.estimator, step)
            self._check_finite(total)
        return total

    def _check_finite(self, total: Gradients) -> None:
        if not total.loss.isfinite():
            raise FloatingPointError(f"the loss is not finite ({total.loss.item()}) at step {self.step}")
        for name, grad in [*total.grads.items(), *((f"scale of {site}", grad) for site, grad in total.scales.items())]:
            if not all_finite(grad):  # a redraw's loss may overflow where the shared pass's did not
                raise FloatingPointError(f"the gradient of '{name}' is not finite at step {self.step}")

    def estimate(self, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> Tensor:
        """Adds an estimate of ∂J to `.grad` of every parameter, as `backward` does, and advances the step.

        Arguments and errors as of `gradients`.

        Returns:
            The mean loss of the noisy passes, a scalar.
        """
        total = self.gradients(x, y, loss)
        with one_thread():
            for name, grad in total.grads.items():
                _accumulate(self.network.parameters[name], grad)
            for name, grad in total.scales.items():
                _accumulate(self.log_scales[scale_key(name)], grad)
        self.step += 1
        return total.loss

    def cost(self, x: Tensor, y: Tensor) -> tuple[int, float]:
        """What a step on this batch costs: noisy copies evaluated per example, and forward passes of the batch.

        The redraw of a site counts as the share of the network's FLOPs that its suffix is.
        """
        step = self.bind(x, y, cross_entropy)
        return self.estimator.copies(step), self.estimator.forward_passes(step)

    def bind(self, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> Step:
        """Everything that the estimate on a batch depends on; arguments as of `gradients`."""
        self._prepare_for_mode(x)
        learned = self.noise is not None and self.noise.learn != "none"
        return Step(
            network=self.network,
            noise=self.noise,
            options=self.options,
            scales=self.scales() if self.noise else {},
            log_scales={s.name: self.log_scales[scale_key(s.name)] for s in self.network.sites} if learned else {},
            seed=self.seed,
            number=self.step,
            x=x.detach(),
            y=y,
            loss=loss,
            **self._site_options,
        )


def scale_key(site: str) -> str:
    """A site's name where a dot, or the name of a method of `ParameterDict`, may not stand."""
    key = site.replace(".", "/") or "model"
    return f"{key}/" if hasattr(nn.ParameterDict, key) else key


def _accumulate(parameter: Tensor, grad: Tensor) -> None:
    parameter.grad = grad if parameter.grad is None else parameter.grad + grad
