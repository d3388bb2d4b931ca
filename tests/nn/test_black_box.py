"""A part that is not torch in the middle of a network: the layers before it train nevertheless."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeRegressor
from slopes import Z, slopes
from torch import nn

from glr_dist import GLR
from glr_dist.errors import SiteError, UserError
from glr_dist.nn import BlackBox


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_come_back_in_the_networks_type_and_other_numbers_in_their_own(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    doubled = BlackBox(lambda a: 2.0 * a.astype(np.float64))(x)
    assert doubled.dtype == dtype
    assert torch.equal(doubled, 2 * x)
    assert not doubled.requires_grad
    assert BlackBox(lambda a: a.argmax(1))(x).dtype == torch.int64
    assert torch.equal(BlackBox(lambda a: a.argmax(), each=True)(x), x.argmax(1))


def test_the_function_may_write_to_its_array() -> None:
    def clear(a: np.ndarray) -> np.ndarray:
        a[:] = 0
        return a

    x = torch.randn(5, 3)
    before = x.clone()
    assert not BlackBox(clear)(x).any()
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (BlackBox(lambda a: a[:2]), "returns float32 of shape [2, 3] for 4 examples, must return numbers [N, …]"),
        (BlackBox(lambda a: 1.0), "of shape [] for 4 examples"),
        (
            BlackBox(lambda a: a, shape=(4,)),
            "returns float32 of shape [4, 3] for 4 examples, must return numbers [N, 4]",
        ),
        (BlackBox(lambda a: ["a"] * len(a)), "must return numbers"),
        (BlackBox(lambda a: None), "returns object of shape []"),
        (BlackBox(lambda a: [a[0], a[0, :2]]), "must return numbers [N, …]"),
    ],
)
def test_what_is_not_one_array_of_numbers_per_example_is_one_line(box: BlackBox, said: str) -> None:
    with pytest.raises(UserError, match="BlackBox: <lambda>") as caught:
        box(torch.randn(4, 3))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_function_is_refused() -> None:
    with pytest.raises(UserError, match="BlackBox: 3 is not allowed: a function of an array"):
        BlackBox(3)  # type: ignore[arg-type]


def test_a_function_that_couples_the_examples_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), BlackBox(lambda a: a - a.mean(0)), nn.Linear(4, 2))
    with pytest.raises(SiteError, match=r"'1' \(BlackBox\) couples the examples"):
        GLR(model, 0.3, copies=4).estimate(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))


@pytest.mark.slow
@pytest.mark.montecarlo
def test_the_layers_around_a_decision_tree_get_their_gradients() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 3))
    tree = DecisionTreeRegressor(max_depth=4, random_state=0).fit(points, np.sign(points) * points[:, ::-1])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), BlackBox(tree.predict, shape=(3,)), nn.Linear(3, 3)).double()
    x, y = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    found = slopes(model, x, y, noise=1.0, differences=True)
    assert {name: slope for name, slope in found.items() if abs(slope.z) > Z} == {}
    assert all(slope.error < 0.5 for slope in found.values())
