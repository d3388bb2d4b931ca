"""`copies: auto`: the law of the variance, the choice of K and M, and estimates that stay unbiased."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
import torch
from torch import nn

from glr_dist import GLR, Gaussian
from glr_dist.errors import ConfigError
from glr_dist.estimators.allotment import Allotment
from glr_dist.estimators.choices import COPIES, HEAD, Candidate, Way, best, cheapest, forward_passes, uniform
from glr_dist.estimators.samplers import DirectionBlock, orthogonal
from glr_dist.estimators.variance_law import VarianceLaw, cosine_of
from glr_dist.execution.inline import Inline
from glr_dist.execution.measure import measured
from glr_dist.losses import cross_entropy, zero_one
from glr_dist.nn import Heaviside
from glr_dist.streams import Key

CPU = torch.device("cpu")


def made(**options) -> tuple[GLR, torch.Tensor, torch.Tensor]:
    """A network of three sites, of which the first is dear, and its batch."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(30, 12), Heaviside(), nn.Linear(12, 8), Heaviside(), nn.Linear(8, 3))
    chosen = {"copies": "auto", "passes": "auto", "budget": 20.0, "example_block": 32, **options}
    net = GLR(model, Gaussian(0.5), executor=Inline(1), **chosen)
    return net, torch.randn(64, 30), torch.arange(64) % 3


# ---------------------------------------------------------------- the law


@cache
def centred_gradients(d: int, draws: int, rows: int) -> torch.Tensor:
    """Gradients of single directions of frames [draws, rows, D], less their mean."""

    def drawn(block: int) -> torch.Tensor:
        eps = orthogonal(Gaussian(1.0), Key(block), DirectionBlock(0, 0, rows, rows), 1, d, torch.float64, CPU)[:, 0]
        return (eps.sum(-1, keepdim=True) + 0.3 * eps[:, :1] ** 3).tanh() * eps

    found = torch.stack([drawn(block) for block in range(draws)])
    return found - found.mean((0, 1))


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("directions", [1, 3, 6, 8, 12])
def test_the_law_holds_for_the_means_over_any_number_of_directions(directions):
    """4,000 means over directions of frames of D = 6 rows; the ratio of the variances is 1 up to 5 %."""
    d = 6
    found = centred_gradients(d, 4000, 12)
    row = found.square().sum(-1).mean()  # v
    pair = (found[:, 0] * found[:, 1]).sum(-1).mean() / 2 + (found[:, 3] * found[:, 5]).sum(-1).mean() / 2  # c
    law = VarianceLaw(1.0, 0.0, float(pair + (row - pair) / d), float(row - pair), d)
    actual = found[:, :directions].mean(1).square().sum(-1).mean()
    assert law.within(directions) == pytest.approx(float(actual), rel=0.05)


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("sampler", ["iid", "orthogonal"])
def test_the_variance_of_a_linear_loss_is_measured_as_its_closed_form(sampler):
    """One example, L = a·v: v = |a|²(D + 1) for one pair, covariance -|a|² within a frame; 600 passes, 4 errors."""
    a = torch.tensor([1.0, -2.0, 0.5, 1.5])
    net = GLR(nn.Linear(3, 4), Gaussian(1.0), copies="auto", budget=50, sampler=sampler, executor=Inline(1))
    x, y = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([0])
    step = net.bind(x, y, lambda z, _: z @ a)
    limits = {net.network.sites[0].name: 16}
    laws, cost = measured(net.executor, net.estimator, step, 600, limits, {}, net.ways)
    (law,) = (ways[COPIES] for ways in laws.values())
    size = float(a @ a) * float(x.square().sum() + 1)  # of weights and bias
    frames = sampler == "orthogonal"
    assert law.direction == pytest.approx(size * (4 + 2 if frames else 4 + 1), rel=0.1)
    assert law.frame == pytest.approx(size * 2 / 4 if frames else 0.0, rel=0.25)
    assert law.between < 0.1 * size
    assert law.gradient == pytest.approx(size, rel=0.05)
    assert cost == 600  # a redraw of the last site runs nothing again


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.montecarlo
def test_the_law_predicts_the_variance_of_estimates_at_other_sizes():
    """200 estimates each; measured on 64 passes; the ratio of the variances is 1 up to 25 %."""
    net, x, y = made(redraw="auto")
    step = net.bind(x, y)
    limits = {site.name: 2 * 2 * site.units for site in net.network.sites}
    laws, _ = measured(net.executor, net.estimator, step, 64, limits, net.unit_wise, dict.fromkeys(limits, "auto"))
    for copies, passes, redraw in ((6, 1, "auto"), (40, 2, "auto"), (2, 2, "flips")):
        redraws = {"4": "copies", "*": redraw}
        other, _, _ = made(copies=copies, passes=passes, budget=None, redraw=redraws)
        grads: dict[str, list[torch.Tensor]] = {}
        for number in range(200):
            other.step = number
            for name, grad in other.gradients(x, y).grads.items():
                grads.setdefault(name.split(".")[0], []).append(grad.flatten())
        for site, found in grads.items():
            rows = torch.cat([torch.stack(found[0::2]), torch.stack(found[1::2])], 1)  # weights and biases
            how = "flips" if redraws.get(site, redraw) == "flips" else COPIES  # with the scores that `auto` chooses
            law = laws[site][how]
            predicted = law.relative(copies // 2 if how == COPIES else 0, passes) * law.gradient
            assert predicted == pytest.approx(float(rows.var(0).sum()), rel=0.25), (site, copies, passes, how)


# ---------------------------------------------------------------- the choice


def some_sites(seed: int) -> list[Candidate]:
    """Sites with random costs and laws."""
    rng = random.Random(seed)
    sites = []
    for number in range(rng.randint(1, 5)):
        rows = rng.choice([None, 3, 10, 40])
        between, direction = (10 ** rng.uniform(-2, 2) for _ in range(2))
        frame = 0.0 if rows is None else 10 ** rng.uniform(-3, 1)
        cost = 0.5 * rng.random() ** 2
        ways = [Way(COPIES, cost, VarianceLaw(10 ** rng.uniform(-1, 1), between, frame, direction * (rows or 1), rows))]
        if rng.random() < 0.4:
            ways.append(
                Way("flips", cost / 2, VarianceLaw(ways[0].law.gradient, between * rng.uniform(0.5, 3)), rows or 5)
            )
        if rng.random() < 0.2:
            ways = [Way(HEAD, cost, VarianceLaw(1.0, between), rng.choice([0, 8]))]
        sites.append(Candidate(str(number), rng.randint(5, 500), tuple(ways)))
    return sites


@pytest.mark.parametrize("seed", range(60))
def test_a_choice_is_never_worse_than_one_k_everywhere_and_keeps_to_the_budget(seed):
    sites = some_sites(seed)
    budget = random.Random(-seed).choice([12.0, 40.0, 300.0])
    names = [site.name for site in sites]
    for passes in (None, dict.fromkeys(names, 2)):
        chosen = best(sites, budget, passes)
        assert forward_passes(chosen) <= budget
        others = [uniform(sites, budget, passes or dict.fromkeys(names, m)) for m in ((1,) if passes is None else (2,))]
        for other in others:
            worst = max(choice.relative for choice in other)
            assert max(choice.relative for choice in chosen) <= worst
        if passes:
            assert all(choice.passes == 2 for choice in chosen)
            assert sum(c.loss for c in chosen) <= sum(c.loss for c in others[0])
            assert sum(c.elements for c in chosen) <= sum(c.elements for c in others[0])


def test_where_sites_differ_the_copies_go_to_the_one_that_needs_them():
    """Without frames, and with cosines near 1, K should go as √direction: 30 to 10 to 3, within 10 %."""
    sites = [
        Candidate(name, 1, (Way(COPIES, 0.01, VarianceLaw(1.0, 0.0, 0.0, direction)),))
        for name, direction in (("a", 9.0), ("b", 1.0), ("c", 0.09))
    ]
    chosen = {choice.site.name: choice for choice in best(sites, 11, dict.fromkeys("abc", 1))}
    assert sum(choice.copies for choice in chosen.values()) > 900
    assert chosen["a"].copies / chosen["b"].copies == pytest.approx(3, rel=0.3)
    assert chosen["b"].copies / chosen["c"].copies == pytest.approx(10 / 3, rel=0.3)
    assert sum(c.relative for c in chosen.values()) < 0.75 * sum(
        c.relative for c in uniform(sites, 11, dict.fromkeys("abc", 1))
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_the_cheapest_choices_reach_the_cosine_and_fewer_passes_do_not(seed):
    sites = some_sites(seed)
    chosen = cheapest(sites, 0.9)
    assert chosen is not None
    assert all(cosine_of(choice.relative) >= 0.9 for choice in chosen)
    cost = forward_passes(chosen)
    for m in range(1, 40):  # one M at all sites, and the fewest copies that suffice
        total = float(m)
        for site in sites:
            costs = [
                m * k * way.cost
                for way in site.ways
                for k in ([way.copies] if way.copies is not None else range(2, 2000, 2))
                if way.law.relative(k // 2, m) <= 0.9**-2 - 1
            ]
            total += min(costs, default=math.inf)
        assert cost <= 1.6 * total  # the values that are tried lie 25 % apart, in K and in M


def test_a_budget_below_the_fewest_copies_is_refused():
    with pytest.raises(ConfigError, match=r"estimator\.budget: 1\.2 forward passes are not enough: the fewest .* take"):
        net, x, y = made(budget=1.2)
        net.estimate(x, y)


# ---------------------------------------------------------------- in a network


@pytest.mark.slow
def test_a_step_stays_within_the_budget_and_the_allotment_is_kept():
    net, x, y = made(measure_every=3)
    first = net.cost(x, y)[1]
    assert first <= 20  # before anything is measured
    seen = []
    for _ in range(4):
        net.estimate(x, y)
        assert net.allotment is not None
        assert net.cost(x, y)[1] == pytest.approx(net.allotment.forward_passes)
        assert net.allotment.forward_passes <= 20
        assert net.allotment.measuring > 0
        seen.append(net.allotment)
    assert seen[0] is seen[1] is seen[2]
    assert seen[3].step == 3
    assert Allotment.from_state(seen[0].state()) == seen[0]


@pytest.mark.slow
def test_the_estimate_is_that_of_the_same_numbers_by_hand():
    """The measurement has left no trace in the noise of the estimate, and so cannot bias it."""
    net, x, y = made(redraw="auto", measure_every=1)
    net.step = 5
    found = net.gradients(x, y).grads
    given = net.allotment
    assert given is not None
    assert given.step == 5
    copies = {name: 2 if name in given.unit_wise else k for name, k in given.copies.items()}
    drawn = {name: "levels" if name in net.unit_wise and name != "4" else "copies" for name in given.copies}
    redraw = {**drawn, **given.unit_wise}  # `auto` with a given K would choose by itself
    byhand, _, _ = made(copies=copies, passes=given.passes, redraw=redraw, budget=None)
    byhand.step = 5
    expected = byhand.gradients(x, y).grads
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_the_streams_of_a_measurement_are_those_of_no_estimate(monkeypatch):
    """A step of `measured` is 2^42 later: beyond those of training and of `diagnose`."""
    net, x, y = made()
    steps = set()
    partial = net.estimator.partial
    monkeypatch.setattr(
        type(net.estimator), "partial", lambda self, step, *rest: steps.add(step.number) or partial(step, *rest)
    )
    net.step = 7
    net.estimate(x, y)
    assert steps == {7, 2**42 + 7}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_the_allotment_does_not_depend_on_the_number_of_threads_or_of_earlier_calls(threads):
    net, x, y = made(redraw="auto")
    net.estimate(x, y)
    other, _, _ = made(redraw="auto")
    other.executor = Inline(threads)
    other.gradients(x, y)  # without a step
    other.allotment = None
    other.estimate(x, y)
    assert other.allotment == net.allotment


@pytest.mark.slow
def test_the_head_keeps_its_draws_and_an_expected_head_has_none():
    net, x, y = made(head="expected")
    net.estimate(x, y, zero_one)
    assert net.allotment is not None
    assert net.allotment.copies["4"] == 0
    net, x, y = made(head="derivative", head_draws=6)
    net.estimate(x, y)
    assert net.allotment is not None
    assert net.allotment.copies["4"] == 6


@pytest.mark.slow
def test_redraws_inside_the_column_space_are_measured_there_and_counted_with_their_cost():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(288, 3))
    x, y = torch.randn(16, 1, 12, 12), torch.arange(16) % 3
    net = GLR(model, 0.5, copies="auto", passes="auto", redraw="auto", budget=40, feedback="control_variate")
    for _ in range(2):
        net.estimate(x, y)
    step = net.bind(x, y)
    assert step.spaces["0"].units == 20  # of 288
    given = net.allotment
    assert given is not None
    assert given.forward_passes == pytest.approx(net.cost(x, y)[1])
    assert given.forward_passes <= 40


def test_flips_that_the_user_asks_for_stay():
    net, x, y = made(redraw={"2": "flips", "*": "copies"}, budget=8.0)
    net.estimate(x, y)
    assert net.allotment is not None
    assert net.allotment.unit_wise == {"2": "flips"}
    assert net.allotment.copies["2"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("losses", [(zero_one, cross_entropy), (cross_entropy, zero_one)])
def test_a_loss_with_another_head_is_measured_anew(losses):
    """The head decides the number of draws at the last site."""
    net, x, y = made(head="auto")
    for loss in (*losses, losses[0]):
        net.estimate(x, y, loss)
        alone, _, _ = made(head="auto")
        alone.step = net.step - 1
        alone.estimate(x, y, loss)
        assert net.allotment == alone.allotment


@pytest.mark.slow
def test_another_network_is_measured_anew():
    net, x, y = made()
    net.estimate(x, y)
    net.model.append(nn.Linear(3, 3))
    net.estimate(x, y)
    assert net.allotment is not None
    assert set(net.allotment.copies) == {"0", "2", "4", "5"}
    assert net.allotment.step == 1


@pytest.mark.parametrize("learn", ["site", "unit"])
def test_sites_that_only_learn_their_scale_are_measured_too(learn):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).requires_grad_(False)
    model[2].weight.requires_grad_(True)
    net = GLR(model, Gaussian(0.5, learn=learn), copies="auto", budget=10, sampler="iid", antithetic=False)
    net.estimate(torch.randn(16, 5), torch.arange(16) % 3)
    assert net.allotment is not None
    assert all(copies >= 1 for copies in net.allotment.copies.values())


def test_the_calls_of_a_recurrent_module_get_copies_each():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.cell(self.cell(x).tanh()).tanh())

    net = GLR(Twice(), 0.3, copies="auto", passes="auto", budget=15)
    net.estimate(torch.randn(16, 6), torch.arange(16) % 3)
    assert net.allotment is not None
    assert set(net.allotment.copies) == {"cell[0]", "cell[1]", "head"}


@pytest.mark.slow
def test_a_measurement_does_not_depend_on_the_allotment_so_far():
    """A site that is redrawn unit by unit, cheaply, still has its copies measured and priced as copies."""
    model = nn.Sequential(nn.Linear(30, 12), nn.Sigmoid(), nn.Linear(12, 3))
    x, y = torch.randn(64, 30), torch.arange(64) % 3

    def net() -> GLR:
        return GLR(model, 0.5, copies="auto", passes="auto", budget=4.0, redraw="auto", head="auto", measure_every=1)

    one, other = net(), net()
    one.gradients(x, y)
    assert one.allotment is not None
    assert one.allotment.unit_wise == {"0": "differences"}
    for each in (one, other):
        each.step = 7
        each.gradients(x, y)
    assert one.allotment == other.allotment
    old = {**one.allotment.state(), "flips": ["0"]}
    del old["unit_wise"]
    assert Allotment.from_state(old).unit_wise == {"0": "flips"}
