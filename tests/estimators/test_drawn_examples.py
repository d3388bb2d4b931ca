"""Redraws for a share of the examples: the draw, what it costs, and what is refused.

`test_unbiased` compares the estimates with the exact gradient, `tests/execution` their bits.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import glr_dist
from glr_dist.config import Estimator as Options
from glr_dist.config import Noise
from glr_dist.config.validation import check_estimator
from glr_dist.errors import ConfigError
from glr_dist.estimators.drawn_examples import drawn_rows, probabilities

LOSSES = {
    "spread": np.arange(20.0),
    "equal": np.full(20, 0.7),
    "one outlier": np.array([1e6] + [0.0] * 19),
    "negative": -(np.arange(20.0) ** 2),
    "two kinds": np.array([0.0] * 14 + [1.0] * 6),
}


@pytest.mark.parametrize("number", [1, 5, 13, 19])
@pytest.mark.parametrize("kind", LOSSES)
def test_probabilities_grow_with_the_loss_and_add_up(kind, number):
    losses = LOSSES[kind]
    found = probabilities(losses, number)
    assert found.sum() == pytest.approx(number)
    assert found.max() <= 1
    assert found.min() >= 0.3 * number / len(losses) * (1 - 1e-9)
    assert (np.diff(found[np.argsort(losses, kind="stable")]) >= -1e-12).all()
    if kind == "equal":
        assert found == pytest.approx(number / len(losses))


def test_each_example_is_drawn_with_its_probability_and_none_twice():
    """The frequencies of 20,000 draws; z bound 4.5."""
    chances = probabilities(np.array([0.0, 0.0, 3.0, 1.0, 9.0, 0.5, 0.1, 2.0]), 3)
    stream, counts, draws = np.random.default_rng(0), np.zeros(8), 20_000
    for _ in range(draws):
        rows = drawn_rows(chances, 3, stream.random())
        assert len(set(rows.tolist())) == 3
        counts[rows] += 1
    spread = np.sqrt(chances * (1 - chances) / draws)
    assert (np.abs(counts / draws - chances) <= 4.5 * spread + 1e-12).all()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_draw_stay_inside(u):
    assert drawn_rows(np.full(7, 3 / 7), 3, u).tolist() == ([0, 2, 4] if u == 0 else [2, 4, 6])


def small(**options: object) -> glr_dist.GLR:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3))
    return glr_dist.GLR(model, 0.5, copies=24, **options)


def data(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=stream), torch.randint(0, 3, (n,), generator=stream)


def test_a_share_of_one_changes_no_bits():
    for mine, its in zip(*(net.gradients(*data()).grads.values() for net in (small(share=1.0), small())), strict=True):
        assert torch.equal(mine, its)


def test_fewer_redraws_are_counted():
    whole, quarter = (
        net.estimator.forward_passes(net.bind(*data(), glr_dist.losses.cross_entropy))
        for net in (small(), small(share=0.25))
    )
    assert quarter - 1 == pytest.approx((whole - 1) / 4)  # the shared pass is of all examples


@pytest.mark.parametrize("n", [1, 2, 40])
def test_the_cost_does_not_depend_on_the_batch_that_it_is_asked_for(n):
    copies, passes = small(share=0.25, example_block=40).cost(*data(n))
    whole = small(example_block=40).cost(*data(n))
    assert copies == whole[0] / 4
    assert passes - 1 == pytest.approx((whole[1] - 1) / 4)


def test_a_last_site_with_a_derivative_keeps_all_examples():
    """Its gradient is exact given the shared pass, so that a share leaves it as it is."""
    found = [small(share=share, head="derivative").gradients(*data()).grads["2.weight"] for share in (1.0, 0.25)]
    assert torch.equal(*found)


def test_a_loss_that_is_not_finite_is_not_hidden():
    net = small(share=0.25)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return torch.where(torch.arange(len(losses)) % 40 == 39, torch.nan, losses)  # that of one example

    with pytest.raises(FloatingPointError):
        net.estimate(*data(), loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "share: 0 is not allowed"),
        ({"share": 1.5}, "share: 1.5 is not allowed"),
        ({"share": 0.5, "name": "joint"}, "estimator.share: has no effect with 'joint'"),
        ({"share": 0.5, "name": "pathwise"}, "estimator.share: has no effect with 'pathwise'"),
        (
            {"share": 0.5, "copies": "auto", "budget": 20},
            "estimator.share: is not allowed with estimator.copies 'auto'",
        ),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        check_estimator(glr_dist.config.build(Options, options), Noise())
