"""GLR: a module, a noise and an estimator; `estimate` fills `.grad` as `backward` does."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glr_dist import config
from glr_dist.checks import all_finite, check_no_shared_statistics
from glr_dist.errors import ConfigError, SiteError, UserError
from glr_dist.estimators import ESTIMATORS, Gradients, Step
from glr_dist.estimators.allotment import Allotment, best_allotment, candidates, first_allotment
from glr_dist.estimators.compiled_step import CompiledStep, Shape, compiles_passes
from glr_dist.estimators.feedback import Feedback, FeedbackMap
from glr_dist.estimators.head import DERIVATIVE, EXPECTED, SAMPLED, Head, check_expectation, head_of
from glr_dist.estimators.unit_wise import UnitWise, next_linear, replay_count, widest
from glr_dist.estimators.ways import known_thresholds, levels_of, spaces_of, unit_wise_of
from glr_dist.estimators.work import elements_from
from glr_dist.execution.executor import Executor
from glr_dist.execution.measure import PASSES as MEASURED_PASSES
from glr_dist.execution.measure import limits_of, measured
from glr_dist.execution.reproducible import reproducible
from glr_dist.inductor import CompileError
from glr_dist.losses import Loss, cross_entropy
from glr_dist.network import Network
from glr_dist.noise import Noise, noise_of
from glr_dist.options import checked_options, compiles, executor_of, unknown_option
from glr_dist.outputs import Output, call, selected
from glr_dist.rules import direct_rule
from glr_dist.sites import DEFAULT_TYPES, by_site
from glr_dist.streams import Key, generator
from glr_dist.summary import Summary, summary_of
from glr_dist.trees import Tree, count, leaves, mapped
from glr_dist.verification import verify

_MOST_COMPILED = 8  # losses whose steps are compiled
_MOST_ELEMENTS = 4.0  # of the moves that `auto` takes for K copies, relative to those


class GLR(nn.Module):
    """Trains `model` without backpropagation.

    `estimate` adds an estimate of ∂J to `.grad` of every parameter, where J(θ) is the mean over examples of E[loss]
    with noise at the output of every site. Calling the object runs the model without noise. If the noise learns its
    scales, call `prepare(x)` before building the optimizer, so that `parameters()` holds them.

    Args:
        model: any module. An `nn.Sequential`, or a module with a method `chain()` that lists its blocks in order, is
            replayed from the redrawn site on; any other module is replayed as a whole.
        noise: the law and scale of the noise: a scale (Gaussian noise), an object such as `Laplace(0.3)`, or a custom
            law with `sample(shape, stream, dtype)` and `score(eps)`; None for a noise-free pass (`pathwise` only).
        estimator: "conditional", "layerwise", "joint" or "pathwise", or a whole `config.Estimator`.
        copies: K, redraws per example, site and shared pass (default 100), a mapping from site-name patterns to K, or
            "auto": allotted to the sites by their measured variance, within `budget`.
        passes: M, shared passes per step (default 1), a mapping from site-name patterns to M, or "auto".
        budget: forward passes per step that "auto" allots; a redraw counts as its share of the network's FLOPs.
        measure_every: steps between two measurements of the variance (default 500).
        sampler: "iid", "orthogonal" (Gaussian noise), "sobol", or "auto": orthogonal for Gaussian noise, else iid.
        antithetic: use each ε with both signs (default True).
        baseline: "shared" (default), "leave_one_out" or "none".
        redraw: "copies" (default): K draws of a site's noise; "levels": the same, with the mean of their scores given
            the levels of the piecewise constant units behind the site; "column_space": K draws of the noise's component
            in the column space of the layer's input (Gaussian law); "flips": each piecewise constant unit at the levels
            that it does not have; "differences": each unit at both ends of a random interval (Gaussian or Laplace law);
            "auto": flips or differences at the last hidden site, where a linear head follows that is not sampled,
            elsewhere levels where the units are piecewise constant, column_space where it pays, else copies, and with
            `copies="auto"` flips or differences where they have less variance; or a mapping from site-name patterns to
            these. Flips and differences replace K, for `conditional` only.
        feedback: use of a linear map from the output error to a site's δ, learned from its past estimates: "none"
            (default), "control_variate" (lowers the variance of redraws without bias) or "biased" (takes their place
            as far as it has predicted them).
        head: noise of the last site: "sampled" (drawn, the default), "derivative" (drawn, with the loss's derivative at
            the noisy logits), "expected" (integrated out, if the loss offers its expectation) or "auto", the best that
            loss and network allow.
        head_draws: draws per example and shared pass at which "derivative" is evaluated (default 8).
        share: share of the examples of each block that sites are redrawn for (default 1); those with a large loss are
            drawn more often, and the estimate stays unbiased.
        example_block: examples per work item and per stream of noise (default 128).
        block_elements: maximum number of elements of one tensor of a work item; "auto" (default) is 2^19 on the CPU and
            2^24 on a GPU.
        items_per_site: maximum number of work items per site, example block and shared pass (default 16).
        sites: module types that are sites; by default `nn.Linear` and `nn.Conv2d`.
        site_names: patterns of site names.
        seed: names all streams of noise.
        executor: where work items are computed: "inline" (this process, the default), "layers" (Ray actors), or an
            executor such as `glr_dist.Layers(8)`.
        actors: number of Ray actors; short for `executor=glr_dist.Layers(actors)`.
        compile: "none" (default), or "step": shared passes and redraws are compiled before the first step of each
            batch size, which takes seconds; the step runs eagerly, with a warning, if one of them cannot be compiled.
        output: chooses the output if the model returns several tensors: a key, an index, the name of an attribute, or
            a function of the value; by default `logits` where there is one, else the only tensor.
        verify: check on a few examples, before the first step and after a change of the model, that the model is what
            the estimates rely on (default True).

    Raises:
        ConfigError: an option is unknown or not allowed, a combination would be biased, or a custom law is wrong.

    Reference:
        Peng, Xiao, Heidergott, Hong, Lam: A New Likelihood Ratio Method for Training Artificial Neural Networks,
        INFORMS Journal on Computing, 2022.
    """

    def __init__(
        self,
        model: nn.Module,
        noise: Noise | float | Mapping[str, float] | object | None = 1.0,
        estimator: str | config.Estimator = "conditional",
        *,
        copies: int | str | Mapping[str, int] | None = None,
        passes: int | str | Mapping[str, int] | None = None,
        budget: float | None = None,
        measure_every: int | None = None,
        sampler: str | None = None,
        antithetic: bool | None = None,
        baseline: str | None = None,
        redraw: str | Mapping[str, str] | None = None,
        feedback: str | None = None,
        head: str | None = None,
        head_draws: int | None = None,
        share: float | None = None,
        example_block: int | None = None,
        block_elements: int | str | None = None,
        items_per_site: int | None = None,
        sites: Sequence[type[nn.Module]] | None = None,
        site_names: Sequence[str] = ("*",),
        seed: int = 0,
        executor: Executor | str | None = None,
        actors: int | None = None,
        compile: str = "none",
        verify: bool = True,
        output: Output = None,
        **unknown: object,
    ) -> None:
        super().__init__()
        if unknown:
            known = [name for name in inspect.signature(GLR).parameters if name not in ("model", "unknown")]
            raise ConfigError(unknown_option(next(iter(unknown)), known))
        given = {
            "copies": copies,
            "passes": passes,
            "budget": budget,
            "measure_every": measure_every,
            "sampler": sampler,
            "antithetic": antithetic,
            "baseline": baseline,
            "redraw": redraw,
            "feedback": feedback,
            "head": head,
            "head_draws": head_draws,
            "share": share,
            "example_block": example_block,
            "block_elements": block_elements,
            "items_per_site": items_per_site,
        }
        options = {name: value for name, value in given.items() if value is not None}
        if isinstance(estimator, str):
            estimator = config.build(config.Estimator, {"name": estimator, **options}, "estimator.")
        elif options:
            raise ConfigError(f"{', '.join(options)}: cannot stand beside a whole config.Estimator; set it there")
        self.model = model
        self.noise = noise_of(noise)
        self.options = checked_options(estimator, self.noise)
        self.network = Network(model, DEFAULT_TYPES if sites is None else sites, site_names, output)
        self.log_scales = nn.ParameterDict()
        self.seed = seed
        self.step = 0
        self.executor = executor_of(executor, actors)
        self.estimator = ESTIMATORS[self.options.name]
        self._site_options: dict[str, Any] = {}
        self.ways: dict[str, str] = {}  # of redrawing, by site, as the options say
        self.unit_wise: dict[str, UnitWise] = {}  # by site, where one is required or allowed
        self.allotment: Allotment | None = None  # of the budget, once the variance has been measured
        self.verify = verify
        self.compiles = compiles(compile, self.options)
        self._compiled: list[tuple[Loss, CompiledStep]] = []
        self._allotted_head: str | None = None  # kind of the head that the allotment is for
        self.feedback = Feedback()
        self._decided: tuple[Loss, Head, dict[str, Any]] | None = None  # head and options by site for the last loss
        self._verified: set[str] = set()  # names of the losses that the network as it is was verified with

    def forward(self, x: Tree) -> Tensor:
        """Returns the model's outputs without noise.

        Args:
            x: inputs [N, …]: a tensor, or a tuple (the model's positional arguments), a list or a mapping (keyword
                arguments) of tensors.
        """
        return selected(call(self.model, x), self.network.output)

    def noisy(self, x: Tree, key: Key) -> Tensor:
        """Returns the model's outputs of one pass with noise at every site.

        Args:
            x: inputs as in `forward`.
            key: names the streams of the noise, one for each site.
        """
        self._prepare_if_changed(x)
        noise, network, scales = self.noise, self.network, self.scales()
        assert noise is not None

        def visit(name: str, _: Tensor, z: Tensor) -> Tensor:
            stream = generator(key._replace(site=network.by_name[name].index), z.device)
            return z + scales[name] * noise.sample(z.shape, stream, z.dtype)

        with network.hooked():
            return network.run(x, visit)

    def prepare(self, x: Tree) -> None:
        """Finds the sites by running two examples of the inputs x, as in `forward`.

        `estimate` prepares by itself on its first call, and again when the model has changed: its
        modules, their mode (training or evaluation) and hooks, or its parameters.

        Raises:
            SiteError: the network cannot be trained as it is, a pattern matches no site, or loaded scales do not fit.
        """
        network = self.network
        self._verified.clear()
        self._compiled.clear()
        self._decided = None
        estimated = self.options.name != "pathwise"
        network.prepare(x, estimated=estimated, keep_inputs=lambda site: direct_rule(network, site) is not None)
        names = [site.name for site in network.sites]
        if self.options.name == "joint":
            check_no_shared_statistics(self.model)
        direct = {site.name: direct_rule(network, site) for site in network.sites}
        self.ways = self.ways_of(self.options.redraw)
        thresholds = known_thresholds(network, self.noise, self.ways, leaves(x)[0])
        self.unit_wise = unit_wise_of(network, self.noise, self.options, self.ways, thresholds)
        levels = levels_of(self.options, self.ways, thresholds)
        copies, passes = (1 if value == "auto" else value for value in (self.options.copies, self.options.passes))
        self._site_options = {
            "copies": by_site(copies, names, "estimator.copies"),
            "passes": by_site(passes, names, "estimator.passes"),
            "levels": levels,
            "spaces": spaces_of(network, self.noise, self.options, self.ways, levels),
            "rules": {name: rule for name, rule in direct.items() if rule is not None},
        }
        if self.noise is None:
            return
        for site, scale in zip(network.sites, by_site(self.noise.scale, names, "noise.scale").values(), strict=True):
            shape = site.shape if self.noise.learn == "unit" else torch.Size()
            if (key := scale_key(site.name)) in self.log_scales:
                if (found := self.log_scales[key].shape) != shape:
                    raise SiteError(
                        f"the loaded scale of site '{site.name}' has shape {tuple(found)}, not {tuple(shape)} as "
                        f"learn='{self.noise.learn}' needs"
                    )
            else:
                log_scale = torch.full(shape, math.log(scale), dtype=network.dtype, device=leaves(x)[0].device)
                learned = self.noise.learn != "none"
                self.log_scales[key] = nn.Parameter(log_scale, requires_grad=learned)

    def _prepare_if_changed(self, x: Tree) -> None:
        if self.network.prepared_for != self.network.state:
            self.prepare(x)

    def _verify_if_changed(self, step: Step) -> None:
        """Verifies the network and the loss before their first step, and after a change."""
        loss = getattr(step.loss, "__qualname__", type(step.loss).__qualname__)
        if self.verify and loss not in self._verified:
            verify(step)
            if step.head.kind == EXPECTED:
                check_expectation(step)
            self._verified.add(loss)

    def scales(self) -> dict[str, Tensor]:
        """Returns σ by site name: a scalar, or one per unit [*S]. Learned scales are first raised to their floor."""
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
            scale: σ for all sites, or a mapping from site-name patterns to σ.

        Raises:
            UserError: the network has no noise, or its noise learns its scales.
            ConfigError: a scale is not positive.
            SiteError: a pattern matches no site, or a site no pattern; by `prepare` if the sites are unknown.
        """
        if self.noise is None:
            raise UserError("set_scale: the network has no noise")
        if self.noise.learn != "none":
            raise UserError("set_scale: the scales are learned")
        noise = replace(self.noise, scale=scale)
        if names := [site.name for site in self.network.sites]:
            for name, value in by_site(scale, names, "noise scale").items():
                self.log_scales[scale_key(name)].data.fill_(math.log(value))
        else:
            self.log_scales.clear()  # of a loaded state: `prepare` sets the new ones
        self.noise = noise

    def gradients(self, x: Tree, y: Tree, loss: Loss = cross_entropy) -> Gradients:
        """Returns one estimate of the gradient of J at the current step, without touching `.grad`.

        Args:
            x: inputs as in `forward`.
            y: targets [N, …], a tensor or a tree of tensors.
            loss: `loss(outputs [B, …], targets [B, …]) -> [B]`; it need not be differentiable.

        Raises:
            SiteError: the network cannot be trained as it is.
            UserError: the loss is not one value per example, the batch is empty, or an option does not fit.
            FloatingPointError: the inputs, the logits, the loss or the gradients are not finite.
        """
        if (n := count(x, "x")) != (targets := count(y, "y")) or n == 0:
            raise UserError(f"x and y must have one length >= 1, got {n} and {targets}")
        step = self.bind(x, y, loss)
        with reproducible(), torch.no_grad():
            if not all(all_finite(leaf) for leaf in leaves(x) if leaf.is_floating_point()):
                raise FloatingPointError("the inputs are not finite: x holds NaN or infinity")
            if self._measurement_due():
                self.allotment = None  # a measurement does not depend on the allotment so far
                self._allot(self.bind(x, y, loss))
                step = self.bind(x, y, loss)
            if self.compiles:
                step = self._with_compiled(step)
            self.executor.begin(self.estimator, step)
            with self.network.hooked():
                total = self.executor.gradients(self.estimator, step, lambda: self._verify_if_changed(step))
            self._check_finite(total)
        return total

    def compile_step(self, x: Tree, y: Tree, loss: Loss = cross_entropy) -> None:
        """Compiles the functions of a step, if `compile` is "step"; `estimate` does it by itself otherwise.

        A bar shows the progress on a terminal. Takes the arguments of `gradients` and raises its errors.

        Raises:
            CompileError: a function cannot be compiled.
            UserError: a compiled function differs from the eager code.
        """
        step = self.bind(x, y, loss)
        with reproducible(), torch.no_grad():
            if self.compiles:
                self._compile(step)

    @property
    def compiled_code(self) -> dict[Shape, str]:
        """Digests of the code of the compiled functions, by shape."""
        return {shape: digest for _, compiled in self._compiled for shape, digest in compiled.digests.items()}

    def _compile(self, step: Step) -> Step:
        """Returns the step with the compiled functions of its loss, of which those that it lacks are built."""
        compiled = next((compiled for loss, compiled in self._compiled if loss == step.loss), None)
        if compiled is None:
            if len(self._compiled) == _MOST_COMPILED:
                raise UserError(
                    f"compile: the loss is another function than in {_MOST_COMPILED} steps before, and each is "
                    "compiled; define it once, outside the loop"
                )
            compiled = CompiledStep()
            self._compiled.append((step.loss, compiled))
        step = replace(step, compiled=compiled)
        if (step.size, step.form) not in compiled.batches:
            with self.network.hooked():
                self._verify_if_changed(step)
                tapes = {block: self.estimator.tape(step, 0, block) for block in _different(step)}
                items = [item for item in self.estimator.items(step, 0) if item.example_block in tapes]
                compiled.prepare(self.estimator, step, items, tapes, progress=True)
                try:
                    for block in tapes if compiles_passes(step, items) and not compiled.pass_error else ():
                        compiled.prepare_pass(self.estimator, step, block)
                except CompileError as error:
                    if compiled.batches:
                        raise
                    compiled.pass_error = str(error)
            compiled.batches.add((step.size, step.form))
        return step

    @property
    def eager_passes(self) -> str:
        """Why the shared passes of compiled steps run eagerly; empty if they do not."""
        return next((compiled.pass_error for _, compiled in self._compiled if compiled.pass_error), "")

    def _with_compiled(self, step: Step) -> Step:
        """Returns the step with compiled functions; the first one as it is if they cannot be compiled."""
        before = self.eager_passes
        try:
            step = self._compile(step)
            if self.eager_passes != before:
                warnings.warn(f"compile: {self.eager_passes}; shared passes run eagerly", stacklevel=4)
            return step
        except CompileError as error:
            if any(compiled.batches for _, compiled in self._compiled) or not self.executor.decides_alone:
                raise
            warnings.warn(f"compile: {error}; the step runs eagerly", stacklevel=4)
            self.compiles = False
            return step

    def _check_finite(self, total: Gradients) -> None:
        if not all_finite(total.loss):
            raise FloatingPointError(f"the loss is not finite ({total.loss.item()}) at step {self.step}")
        for name, grad in [*total.grads.items(), *((f"scale of {site}", grad) for site, grad in total.scales.items())]:
            if not all_finite(grad):  # a redraw's loss may overflow where the shared pass's did not
                raise FloatingPointError(f"the gradient of '{name}' is not finite at step {self.step}")

    def estimate(self, x: Tree, y: Tree, loss: Loss = cross_entropy) -> Tensor:
        """Adds an estimate of ∂J to `.grad` of every parameter, as `backward` does, and advances the step.

        Takes the arguments of `gradients` and raises its errors.

        Returns:
            Mean loss of the noisy passes, a scalar.
        """
        total = self.gradients(x, y, loss)
        for name, grad in total.grads.items():
            _accumulate(self.network.parameters[name], grad)
        for name, grad in total.scales.items():
            _accumulate(self.log_scales[scale_key(name)], grad)
        if total.statistics or total.moments:
            with reproducible():
                self.network.move_statistics(total.statistics)
                if total.moments:
                    self.feedback.update(total.moments)
        self.step += 1
        return total.loss

    def cost(self, x: Tree, y: Tree, loss: Loss = cross_entropy) -> tuple[int, float]:
        """Returns the cost of a step on this batch: noisy copies per example, and forward passes of the batch.

        A redraw of a site counts as the suffix's share of the network's FLOPs.
        """
        step = self.bind(x, y, loss)
        return self.estimator.copies(step), self.estimator.forward_passes(step)

    def summary(self, x: Tree, loss: Loss = cross_entropy) -> Summary:
        """Returns what the network is to its estimator: print it to see the sites, their cost, and the parameters.

        Args:
            x: a few inputs, as in `forward`.
            loss: decides what `head` needs, if that is not "sampled".

        Raises:
            SiteError: the network cannot be trained as it is.
        """
        step = self.bind(x, x, loss)
        return summary_of(step, self.estimator.copies(step), self.estimator.forward_passes(step))

    def bind(self, x: Tree, y: Tree, loss: Loss = cross_entropy) -> Step:
        """Returns everything that the estimate on a batch depends on; takes the arguments of `gradients`.

        Raises:
            ConfigError: the loss does not offer what the option `head` needs.
            SiteError: the network cannot be trained as it is, or does not allow that head.
        """
        self._prepare_if_changed(x)
        if self._decided is None or self._decided[0] is not loss:
            head = head_of(self.options.head, self.network, loss, self.noise)
            self._decided = loss, head, self._options_for(head)
        _, head, options = self._decided
        learned = self.noise is not None and self.noise.learn != "none"
        step = Step(
            network=self.network,
            noise=self.noise,
            options=self.options,
            scales=self.scales() if self.noise else {},
            log_scales={s.name: self.log_scales[scale_key(s.name)] for s in self.network.sites} if learned else {},
            seed=self.seed,
            number=self.step,
            x=mapped(Tensor.detach, x),
            y=y,
            loss=loss,
            head=head,
            feedback=self._maps(head, {*options["unit_wise"], *options["levels"]}),
            **options,
        )
        return self._allotted(step) if self.options.copies == "auto" else step

    def _allotted(self, step: Step) -> Step:
        """Returns the step with the K, M and ways of redrawing that the budget affords."""
        other_head = self._allotted_head not in (None, step.head.kind)
        self._allotted_head = step.head.kind
        if other_head or self.allotment is None or set(self.allotment.copies) != {s.name for s in step.learned()}:
            self.allotment = None  # of another network, or for a loss with another head
            sites = candidates(step, self.unit_wise, self.ways, {})
            return first_allotment(step, sites, self._budget, self._passes(step)).applied(step, self.unit_wise)
        return self.allotment.applied(step, self.unit_wise)

    @property
    def _budget(self) -> float:
        assert self.options.budget is not None
        return self.options.budget

    def _passes(self, step: Step) -> Mapping[str, int] | None:
        """Returns M by site, or None if the budget decides it."""
        if self.options.passes == "auto":
            return None
        return {site.name: step.passes[site.name] for site in step.learned()}

    def _measurement_due(self) -> bool:
        if self.options.copies != "auto":
            return False
        return self.allotment is None or not 0 <= self.step - self.allotment.step < self.options.measure_every

    def _allot(self, step: Step) -> None:
        """Measures the variance of each site's gradient on the batch of a step, and allots the budget by it."""
        with self.network.hooked():
            self._verify_if_changed(step)
        limits = limits_of(step, self._budget)
        laws, measuring = measured(
            self.executor, self.estimator, step, MEASURED_PASSES, limits, self.unit_wise, self.ways
        )
        sites = candidates(step, self.unit_wise, self.ways, laws)
        self.allotment = best_allotment(step, sites, self._budget, self._passes(step), measuring)

    def ways_of(self, redraw: str | Mapping[str, str]) -> dict[str, str]:
        """Returns the way of redrawing of each site of the prepared network that an option `redraw` means."""
        return by_site(redraw, [site.name for site in self.network.sites], "estimator.redraw")

    def _options_for(self, head: Head) -> dict[str, Any]:
        """Returns the options by site of the steps that have this head."""
        options = dict(self._site_options)
        options["unit_wise"] = self._unit_wise_for(head)
        options["levels"] = {name: t for name, t in options["levels"].items() if name not in options["unit_wise"]}
        moved = {name: replay_count(self.unit_wise, self.network.by_name[name]) for name in options["unit_wise"]}
        options["copies"] = {**options["copies"], **moved}
        if self.network.sites and self.options.name in ("conditional", "layerwise"):
            draws = {EXPECTED: 0, DERIVATIVE: self.options.head_draws}
            last = self.network.sites[-1].name
            options["copies"] = {**options["copies"], last: draws.get(head.kind, options["copies"][last])}
            if head.kind != SAMPLED:  # its noise is not redrawn to estimate δ
                options["spaces"] = {name: space for name, space in options["spaces"].items() if name != last}
        return options

    def _unit_wise_for(self, head: Head) -> dict[str, UnitWise]:
        """Returns the unit-wise redraws of a step: those that the option names, and with `auto` that before the head.

        There a move of a unit costs one column of weights; the losses of the moves may still be too many.
        """
        sites = self.network.sites if head.kind == SAMPLED else self.network.sites[:-1]
        chosen = {
            site.name: self.unit_wise[site.name]
            for site in sites
            if site.name in self.unit_wise and self.ways[site.name] == self.unit_wise[site.name].name
        }
        if head.kind == SAMPLED or self.options.copies == "auto" or self.options.feedback != "none":
            return chosen
        for site in self.network.sites[-2:-1]:
            may = self.ways[site.name] == "auto" and site.name in self.unit_wise
            if may and next_linear(self.network, site) is not None:
                elements = replay_count(self.unit_wise, site) * widest(self.network, site)
                copies = self._site_options["copies"][site.name] * elements_from(self.network.sites, site)
                if elements <= _MOST_ELEMENTS * copies:
                    chosen[site.name] = self.unit_wise[site.name]
        return chosen

    def _maps(self, head: Head, others: Collection[str]) -> dict[str, FeedbackMap]:
        """Returns the maps of the feedback, for the sites whose δ comes from plain redraws, which `others` are not."""
        if self.options.feedback == "none":
            return {}
        sites = self.network.sites
        drawn = sites if head.kind == SAMPLED else sites[:-1]
        redrawn = [site for site in drawn if site.owned and site.name not in others]
        like = torch.empty(0, dtype=self.network.dtype, device=self.log_scales[scale_key(sites[0].name)].device)
        with reproducible(), torch.no_grad():
            return self.feedback.maps(redrawn, self.network.output_shape.numel(), like)

    def close(self) -> None:
        """Releases what the executor holds, such as its Ray actors."""
        self.executor.close()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Creates the scales of a state before they are loaded, since `prepare` may not have run yet."""
        start = f"{prefix}log_scales."
        scales = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
        if self.noise is not None and self.network.prepared_for is None:
            learned, like = self.noise.learn != "none", next(self.model.parameters(), torch.empty(0))
            for key, value in scales.items():
                fresh = torch.empty(value.shape, dtype=value.dtype, device=like.device)
                self.log_scales[key] = nn.Parameter(fresh, requires_grad=learned)
        elif not scales:  # the state of a network that was never prepared: the scales stay as they are
            state_dict.update({f"{start}{key}": scale.detach() for key, scale in self.log_scales.items()})
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _different(step: Step) -> list[int]:
    """Returns the first example block of each number of examples."""
    return list({step.examples_in(block): block for block in reversed(step.all_example_blocks)}.values())


def scale_key(site: str) -> str:
    """Returns the key of a site in a `ParameterDict`, which accepts neither dots nor the names of its own methods."""
    key = site.replace(".", "/") or "model"
    return f"{key}/" if hasattr(nn.ParameterDict, key) else key


def _accumulate(parameter: Tensor, grad: Tensor) -> None:
    parameter.grad = grad if parameter.grad is None else parameter.grad + grad
