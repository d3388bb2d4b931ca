"""Every estimate is unbiased: averages over keyed streams against the exact gradient of J (J_l for `layerwise`).

Which combinations run is read from `glr_dist.config`, so that one that becomes allowed is tested from that day on:
- every law x estimator x sampler x antithetic x baseline on a two-layer threshold network with the 0-1 loss, with a
  learnable scale for each unit (for each site in orthogonal frames, where units are refused with leave-one-out and
  take the most steps);
- all choices, the `derivative` head and those of `learn` included, on threshold and sigmoid networks with
  cross-entropy.

By default a set runs in which every pair of choices that is allowed together occurs, chosen to be cheap. The whole
first product, all of `pathwise`, and of the others this set and a second such set, chosen to be small, run in the lane
`long`, and with thrice the precision.

A test takes steps until each tensor's standard error is at most 2 % of its gradient's norm, in the lane `long` 0.5 %
(at least 32 steps; it fails if that takes too many), then no component may be further than 4.5 standard errors from the
exact gradient: at most 9 % of its norm, in the lane `long` 2.25 %.
The stop looks at the standard errors alone, never at the difference. The examples are two, repeated many times in the
batch: their noise is independent. The standard error is taken over steps all the same, since the examples of a call
share their orthogonal frames.
The twins at the end are biased on purpose, and fail the same test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR, config
from glr_dist.estimators import joint, redraw
from glr_dist.execution.inline import Inline
from glr_dist.losses import LOSSES, expectation
from glr_dist.nn import Heaviside
from glr_dist.noise import LAWS
from glr_dist.sites import Tape

from .closed_forms import Problem, cdf, gradient

pytestmark = pytest.mark.montecarlo

PRECISION = 0.02  # standard error / norm of the gradient, for each tensor
LONG_PRECISION = 0.005
Z = 4.5
LEAST_STEPS, MOST_STEPS = 32, 4096
UNITS = 2  # D of each site
FRAMES = 16  # of a step

# ---------------------------------------------------------------- what the config allows


class Case(NamedTuple):
    """One combination of options."""

    law: str
    name: str
    sampler: str
    antithetic: bool
    baseline: str
    head: str
    learn: str

    def __str__(self) -> str:
        flags = [*["antithetic"] * self.antithetic, *([] if self.head == "sampled" else [self.head])]
        return "-".join([self.law, self.name, self.sampler, *flags, self.baseline, f"learn_{self.learn}"])

    @property
    def copies(self) -> int:
        """The fewest that make sense; where frames are shared by the examples, a number of whole frames (K = 2D)."""
        least = (2 if self.antithetic else 1) * (2 if self.baseline == "leave_one_out" else 1)
        return max(2, least) if self.sampler != "orthogonal" else FRAMES * UNITS * (2 if self.antithetic else 1)

    @property
    def repeats(self) -> int:
        """Repetitions of the examples in a batch: fewer where a shared frame brings most of the variance."""
        return 128 if self.sampler == "orthogonal" else 2048

    @property
    def cost(self) -> int:
        """Relative time until the estimate is precise, roughly as measured."""
        if self.sampler != "orthogonal":
            return 1
        one_frame = 2 if self.baseline == "leave_one_out" else 1
        return one_frame * (5 if self.antithetic else 10) * (2 if self.name == "conditional" else 1)

    @property
    def precision(self) -> float:
        """Standard error that the full product asks for; a law without pairs of ±ε varies too much for less."""
        return LONG_PRECISION if LAWS[self.law]().symmetric else PRECISION

    def estimator(self) -> config.Estimator:
        """The options, as the config reads them."""
        chosen = {field: getattr(self, field) for field in self._fields if field in config.Estimator.model_fields}
        if self.name == "pathwise":  # these have no meaning there: only the defaults are allowed
            return config.build(config.Estimator, chosen)
        return config.build(config.Estimator, {**chosen, "copies": self.copies})

    def allowed(self, loss: str) -> bool:
        """Returns whether the config accepts the combination."""
        try:
            noise = config.build(config.Noise, {"law": self.law, "learn": self.learn})
            config.check_estimator(self.estimator(), noise, loss)
        except config.ConfigError:
            return False
        return self.head != "expected" or expectation(LOSSES[loss], LAWS[self.law]()) is not None


def choices(section: type[config.Section], field: str) -> tuple[Any, ...]:
    """The values that a field of the config may take."""
    kind = section.model_fields[field].annotation
    return (False, True) if kind is bool else get_args(kind)


def cases(loss: str) -> list[Case]:
    """All combinations that are allowed with a loss."""
    laws = list(LAWS)
    samplers = [sampler for sampler in choices(config.Estimator, "sampler") if sampler != "auto"]
    names, baselines = choices(config.Estimator, "name"), choices(config.Estimator, "baseline")
    heads = [head for head in choices(config.Estimator, "head") if head != "auto"]
    flags, learn = (False, True), choices(config.Noise, "learn")
    product = itertools.product(laws, names, samplers, flags, baselines, heads, learn)
    return [case for case in itertools.starmap(Case, product) if case.allowed(loss)]


def every_estimate(loss: str) -> list[Case]:
    """All laws, estimators, samplers, signs, baselines and heads, without `derivative`.

    A scale for each unit where frames leave that allowed with every baseline and cheap, else one for each site.
    """
    return [
        case
        for case in cases(loss)
        if case.head != "derivative" and case.learn == ("site" if case.sampler == "orthogonal" else "unit")
    ]


def covering(found: list[Case], cost: Callable[[Case], int] = lambda case: 1) -> list[Case]:
    """A small or cheap set of the cases that holds every pair of choices that any of them holds, found greedily."""

    def pairs(case: Case) -> set[tuple[Any, ...]]:
        return set(itertools.combinations(zip(case._fields, case, strict=True), 2))

    left = set().union(*map(pairs, found))
    chosen = []
    while left:
        best = max(found, key=lambda case: len(pairs(case) & left) / cost(case))
        chosen.append(best)
        left -= pairs(best)
    return chosen


def in_lanes(found: list[Case], long: list[Case]) -> Any:
    """Parametrizes a test by (case, needed): a cheap covering set of those found, then it and those of `long`.

    Estimates under the Gumbel law, which has no pairs of ±ε, take the most steps and run in the lane `long` alone.
    """
    default = covering(found, lambda case: case.cost)
    precise = [*default, *(case for case in long if case not in default)]
    return pytest.mark.parametrize(
        ("case", "needed"),
        [
            *(
                pytest.param(case, PRECISION, id=str(case), marks=[pytest.mark.long] * (case.law == "gumbel"))
                for case in default
            ),
            *(pytest.param(case, case.precision, id=f"{case}-precise", marks=pytest.mark.product) for case in precise),
        ],
    )


# ---------------------------------------------------------------- the problems

UNIT_STD = {
    "gaussian": 1.0,
    "laplace": math.sqrt(2),
    "logistic": math.pi / math.sqrt(3),
    "gumbel": math.pi / math.sqrt(6),
}


# W_0, b_0, W_2, b_2, log σ of sites 0 and 2 for noise of unit spread, and two examples, found by a search for gradients
# that are large beside the noise of their estimates.
NUMBERS = {
    "threshold_zero_one": (
        (-0.76, -2.5, -0.07, 0.87),
        (-1.1, -0.67),
        (0.89, -0.68, -1.49, 1.26),
        (1.02, 0.1),
        (-0.02, -0.63),
        (-0.34, -0.99),
        (-1.57, -0.57, 0.76, 1.69),
    ),
    "threshold": (
        (1.4, -0.7, 0.7, 1.5),
        (-1.0, -0.2),
        (0.4, -2.0, -1.5, 2.0),
        (0.4, 0.7),
        (0.3, -0.3),
        (0.4, 0.3),
        (2.0, -1.3, -0.2, 2.0),
    ),
    "sigmoid": (
        (0.3, 0.5, 0.1, -1.9),
        (1.0, 0.2),
        (-0.2, 2.0, -0.5, -2.0),
        (-1.6, -0.0),
        (0.7, 0.7),
        (0.2, 0.2),
        (-0.2, -2.0, 0.7, 0.9),
    ),
}


def tensor(*values: float, shape: tuple[int, ...] = (-1,)) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(shape)


def problem(kind: str, law: str) -> Problem:
    """A network whose gradients are large beside their noise; its noise has about one spread under every law."""
    smooth, loss = kind == "sigmoid", "zero_one" if kind == "threshold_zero_one" else "cross_entropy"
    w0, b0, w2, b2, s0, s2, x = NUMBERS[kind]
    values = {
        "0.weight": tensor(*w0, shape=(2, 2)),
        "0.bias": tensor(*b0),
        "2.weight": tensor(*w2, shape=(2, 2)),
        "2.bias": tensor(*b2),
        "scale 0": tensor(*s0) - math.log(UNIT_STD[law]),
        "scale 2": tensor(*s2) - math.log(UNIT_STD[law]),
    }
    return Problem(values, tensor(*x, shape=(2, 2)), torch.tensor([0, 1]), loss, smooth)


@lru_cache
def exact(kind: str, law: str, learn: str, objective: str) -> dict[str, Tensor]:
    """The reference gradient, shared by all combinations that have it."""
    if learn == "none":  # one scale for each site, as in `site`
        return {name: value for name, value in exact(kind, law, "site", objective).items() if "scale" not in name}
    return gradient(problem(kind, law), law, learn, objective)


def network(values: dict[str, Tensor], activation: nn.Module) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), activation, nn.Linear(2, 2)).double()
    model.load_state_dict({name: value for name, value in values.items() if "scale" not in name})
    return model


def glr(model: nn.Module, values: dict[str, Tensor], law: str, learn: str, x: Tensor, **options: Any) -> GLR:
    """The estimator under test, with the problem's scales."""
    options.setdefault("executor", Inline(1))
    net = GLR(model, LAWS[law](learn=learn), **options)
    net.prepare(x)
    for site, parameter in net.log_scales.items():
        scale = values[f"scale {site}"]
        parameter.data = scale.clone() if learn == "unit" else scale.mean()
    return net


# ---------------------------------------------------------------- the test itself


def agrees(estimates: Iterator[dict[str, Tensor]], reference: dict[str, Tensor], needed: float = PRECISION) -> None:
    """Asserts that the estimates have the mean `reference`: first their precision, then the z of each component."""
    drawn: list[Tensor] = []
    names = list(reference)
    sizes = [reference[name].numel() for name in names]
    norms = torch.stack([reference[name].norm() for name in names])
    goal = torch.cat([reference[name].flatten() for name in names])
    for estimate in itertools.islice(estimates, MOST_STEPS):
        assert estimate.keys() == reference.keys()
        drawn.append(torch.cat([estimate[name].flatten() for name in names]))
        if len(drawn) >= LEAST_STEPS and len(drawn) % 16 == 0:
            all_drawn = torch.stack(drawn)
            errors = all_drawn.std(0) / len(drawn) ** 0.5
            parts = torch.stack([part.norm() for part in errors.split(sizes)])
            # The loss is compared too, but it is no gradient: its precision is not asked for.
            if precise := all(
                part <= needed * norm for name, part, norm in zip(names, parts, norms, strict=True) if name != "loss"
            ):
                break
    precision = {name: f"{part:.2%}" for name, part in zip(names, (parts / norms).tolist(), strict=True)}
    assert precise, f"standard errors too large after {len(drawn)} steps: {precision}"
    differences = all_drawn.mean(0) - goal
    # The errors of quadratures, and of counts of events so rare that they are not Gaussian.
    rounding = 1e-3 * torch.cat([n.expand(s) for n, s in zip(norms, sizes, strict=True)])
    z = (differences.abs() - rounding).clamp(min=0) / errors
    z[differences.abs() <= rounding] = 0  # also where nothing varies
    report = dict(zip(names, [[round(v, 1) for v in part.tolist()] for part in z.split(sizes)], strict=True))
    assert (z <= Z).all(), f"z too large after {len(drawn)} steps: {report}"


def estimates(net: GLR, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Iterator[dict[str, Tensor]]:
    """Independent estimates: one for each step."""
    for net.step in itertools.count():
        found = net.gradients(x, y, loss)
        yield {"loss": found.loss} | found.grads | {f"scale {site}": grad for site, grad in found.scales.items()}


def check(kind: str, case: Case, repeats: int | None = None, needed: float = PRECISION, **options: Any) -> None:
    """One combination on one problem."""
    p, repeats = problem(kind, case.law), repeats or case.repeats
    model = network(p.values, nn.Sigmoid() if p.smooth else Heaviside())
    # Leave-one-out is put to its hardest test: in blocks of one frame it compares dependent directions alone.
    directions = UNITS if case.baseline == "leave_one_out" else FRAMES * UNITS
    signs = 2 if case.antithetic else 1
    one_block = {"example_block": 2 * repeats, "block_elements": directions * signs * 2 * repeats * UNITS}
    chosen = case.estimator().model_copy(update=one_block | options)
    x, y = p.x.repeat(repeats, 1), p.y.repeat(repeats)
    net = glr(model, p.values, case.law, case.learn, x, estimator=chosen)
    reference = exact(kind, case.law, case.learn, "layerwise" if case.name == "layerwise" else "joint")
    agrees(estimates(net, x, y, LOSSES[p.loss]), reference, needed)


@pytest.mark.slow
@in_lanes(every_estimate("zero_one"), every_estimate("zero_one"))
def test_threshold_network_with_the_zero_one_loss(case: Case, needed: float) -> None:
    check("threshold_zero_one", case, needed=needed)


def without_pathwise(found: list[Case]) -> list[Case]:
    """`pathwise` refuses thresholds."""
    return [case for case in found if case.name != "pathwise"]


THRESHOLD = without_pathwise(cases("cross_entropy"))
PATHWISE = [case for case in cases("cross_entropy") if case.name == "pathwise"]
SIGMOID = [case for case in THRESHOLD if case.learn != "none"]


@pytest.mark.slow
@in_lanes(THRESHOLD, covering(THRESHOLD))
def test_threshold_network_with_cross_entropy(case: Case, needed: float) -> None:
    check("threshold", case, needed=needed)


@pytest.mark.slow
@in_lanes([*PATHWISE, *SIGMOID], [*PATHWISE, *covering(SIGMOID)])
def test_sigmoid_network_with_cross_entropy(case: Case, needed: float) -> None:
    check("sigmoid", case, needed=needed)


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 3])
def test_pathwise_averages_its_passes(passes: int) -> None:
    case = Case("gaussian", "pathwise", "iid", True, "shared", "sampled", "unit")
    check("sigmoid", case, 512, passes=passes)


CUT: dict[str, Callable[[int], dict[str, Any]]] = {  # options for a number of examples
    "two frames and half a frame": lambda examples: {"copies": 10},  # frames of two rows, pairs
    "frames in parts": lambda examples: {"copies": 8, "block_elements": 2 * examples * UNITS},
    "a frame and another in one block": lambda examples: {"copies": 12, "block_elements": 8 * examples * UNITS},
    "three shared passes": lambda examples: {"passes": 3},
    "passes and copies site by site": lambda examples: {"passes": {"0": 3, "2": 1}, "copies": {"0": 4, "2": 8}},
    "example blocks, the last one short": lambda examples: {"example_block": examples * 3 // 4},
}


# In frames, whose errors the examples share, these take the most steps; the other samplers have them in every lane.
LONG_CUTS = {
    ("orthogonal", "passes and copies site by site"),
    ("orthogonal", "example blocks, the last one short"),
    ("orthogonal", "frames in parts"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "cut"),
    [
        pytest.param(sampler, cut, marks=[pytest.mark.long] if (sampler, cut) in LONG_CUTS else [])
        for sampler in choices(config.Estimator, "sampler")
        if sampler != "auto"
        for cut in CUT
    ],
)
def test_however_the_work_is_cut(sampler: str, cut: str) -> None:
    """By a coarser precision: a direction lost or used twice would show as a tenth of the gradient."""
    case = Case("gaussian", "conditional", sampler, True, "shared", "sampled", "unit")
    repeats = min(case.repeats, 1024)
    check("threshold_zero_one", case, repeats, needed=0.022, **CUT[cut](2 * repeats))


SHARES: dict[str, tuple[Case, dict[str, Any]]] = {  # redraws for a share of the examples
    "all sites, two passes": (
        Case("gaussian", "conditional", "iid", True, "shared", "sampled", "unit"),
        {"passes": 2, "share": 0.3},
    ),
    "an expected head": (
        Case("laplace", "conditional", "iid", True, "shared", "expected", "site"),
        {"share": 0.3},
    ),
    "flips": (
        Case("gaussian", "conditional", "iid", True, "shared", "expected", "unit"),
        {"redraw": {"0": "flips", "*": "copies"}, "share": 0.3},
    ),
    "a baseline of its own, blocks": (
        Case("logistic", "conditional", "iid", False, "leave_one_out", "sampled", "site"),
        {"share": 0.7, "example_block": 48},
    ),
    "layerwise": (Case("gaussian", "layerwise", "iid", True, "none", "sampled", "site"), {"share": 0.3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_redraws_for_a_share_of_the_examples(name: str) -> None:
    case, options = SHARES[name]
    check("threshold_zero_one", case, 1024, needed=0.03, **options)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["conditional", "layerwise", "joint"])
def test_one_threshold_unit_has_the_laws_density_as_its_slope(law: str, name: str) -> None:
    """E[1(v > 0)] = 1 - F(-z/σ), so ∂/∂z = p(-z/σ)/σ and ∂/∂log σ = -p(-z/σ) z/σ."""
    x, weight, bias, scale = tensor(0.7, -0.4, shape=(1, 2)), tensor(0.9, -0.5, shape=(1, 2)), tensor(0.1), 0.8
    model = nn.Sequential(nn.Linear(2, 1).double())
    model.load_state_dict({"0.weight": weight, "0.bias": bias})
    net = glr(
        model,
        {"scale 0": tensor(scale).log()},
        law,
        "unit",
        x,
        estimator=name,
        copies=2,
        sampler="iid",
        antithetic=LAWS[law]().symmetric,
        example_block=8192,
        block_elements=2**20,
    )
    t = (x @ weight.T + bias) / scale
    slope = torch.autograd.functional.jvp(lambda e: 1 - cdf(law, -e), t, torch.ones_like(t))[1][0] / scale
    reference = {"0.weight": slope[:, None] * x, "0.bias": slope, "scale 0": -slope * t[0] * scale}
    rows, targets = x.expand(8192, -1), torch.zeros(8192)
    steps = estimates(net, rows, targets, lambda outputs, _: (outputs[:, 0] > 0).double())
    agrees(({name: step[name] for name in reference} for step in steps), reference)


# ---------------------------------------------------------------- the references themselves


@pytest.mark.long
@pytest.mark.parametrize("objective", ["joint", "layerwise"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", ["threshold_zero_one", "threshold", "sigmoid"])
def test_reference_does_not_depend_on_its_quadrature(kind: str, law: str, objective: str) -> None:
    finer = gradient(problem(kind, law), law, "unit", objective, nodes=9)
    for name, value in exact(kind, law, "unit", objective).items():
        assert (value - finer[name]).norm() <= 1e-6 * finer[name].norm(), name


# ---------------------------------------------------------------- biased twins fail


def leave_one_out_inside_pairs(losses: Tensor, baseline: str, shared: Tensor) -> Tensor:
    """The bug: each copy is compared with all others, its own antithetic partner among them."""
    copies = losses.flatten(0, 1)
    return (losses - (copies.sum(0) - copies).view_as(losses) / (len(copies) - 1)) if baseline else losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sampler"), [("conditional", "iid"), ("layerwise", "iid"), ("joint", "iid"), ("conditional", "orthogonal")]
)
def test_a_baseline_that_holds_the_antithetic_partner_is_caught(
    name: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("gaussian", name, sampler, True, "leave_one_out", "sampled", "site")
    assert case.allowed("zero_one")
    monkeypatch.setattr(redraw, "centred", leave_one_out_inside_pairs)
    monkeypatch.setattr(joint, "centred", leave_one_out_inside_pairs)
    with pytest.raises(AssertionError, match="z too large"):
        check("threshold_zero_one", case)


@pytest.mark.slow
def test_a_share_of_the_examples_without_their_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tape, "weighted", lambda tape, values: values / 0.3)  # as if each were as likely
    case, options = SHARES["an expected head"]
    with pytest.raises(AssertionError, match="z too large"):
        check("threshold_zero_one", case, 1024, needed=0.03, **options)


REFUSED = {
    "leave-one-out within a Sobol set": Case(
        "gaussian", "conditional", "sobol", False, "leave_one_out", "sampled", "unit"
    ),
    "leave-one-out within a frame, for unit scales": Case(
        "gaussian", "conditional", "orthogonal", True, "leave_one_out", "sampled", "unit"
    ),
    "frames under the Laplace law": Case("laplace", "conditional", "orthogonal", True, "shared", "sampled", "unit"),
    "frames under the logistic law": Case("logistic", "conditional", "orthogonal", True, "shared", "sampled", "unit"),
}
# As the first and the last.
LONG_REFUSED = ("leave-one-out within a frame, for unit scales", "frames under the Laplace law")


@pytest.mark.slow
@pytest.mark.parametrize(
    "reason", [pytest.param(reason, marks=[pytest.mark.long] * (reason in LONG_REFUSED)) for reason in REFUSED]
)
def test_what_the_config_refuses_as_biased_is_biased(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = REFUSED[reason]
    assert not case.allowed("zero_one")
    monkeypatch.setattr(config, "check_estimator", lambda *_: None)
    with pytest.raises(AssertionError, match="z too large"):
        check("threshold_zero_one", case, needed=0.015 if case.sampler == "orthogonal" else 0.03)
