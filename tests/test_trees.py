"""Trees of tensors as inputs, outputs and targets."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slopes import Z, slopes
from torch import Tensor, nn

from glr_dist import GLR
from glr_dist.errors import SiteError, UserError
from glr_dist.losses import cross_entropy
from glr_dist.trees import cloned, copied, count, equal, leaves, mapped, taken

TREE = {"a": (torch.arange(6.0).view(3, 2), [torch.arange(3)]), "b": None, "c": 2}


def test_the_leaves_are_the_tensors() -> None:
    assert [leaf.shape for leaf in leaves(TREE)] == [(3, 2), (3,)]
    assert mapped(len, TREE) == {"a": (3, [3]), "b": None, "c": 2}
    assert count(TREE, "x") == 3


def test_examples_are_taken_and_copied_in_order() -> None:
    assert leaves(taken(TREE, torch.tensor([2, 0])))[1].tolist() == [2, 0]
    assert leaves(taken(TREE, slice(1)))[0].tolist() == [[0, 1]]
    assert leaves(copied(TREE, 2))[1].tolist() == [0, 1, 2, 0, 1, 2]
    assert equal(cloned(TREE), TREE)
    assert not equal(mapped(lambda leaf: leaf + 1, TREE), TREE)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ((torch.zeros(3), torch.zeros(4)), "first dimension: 3, 4"),
        ({"a": torch.zeros(3), "b": torch.tensor(1.0)}, "0, 3"),
        ({"a": None}, "no tensor"),
    ],
)
def test_a_batch_has_one_number_of_examples(tree: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"x: every tensor must hold the same number.*{said}"):
        count(tree, "x")


# ---------------------------------------------------------------- networks


class Pair(nn.Module):
    """Two inputs and a mask; `wrap` makes what it returns of the scores and of another tensor."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any] = lambda scores, other: scores) -> None:
        super().__init__()
        self.left, self.right, self.head, self.wrap = nn.Linear(4, 5), nn.Embedding(6, 5), nn.Linear(5, 3), wrap

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Any:
        words = self.right(tokens) * mask[..., None]
        hidden = torch.tanh(self.left(image) + words.sum(1))
        return self.wrap(self.head(hidden), hidden)


def batch() -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(1)
    x = {
        "image": torch.randn(4, 4, dtype=torch.float64),
        "tokens": torch.randint(0, 6, (4, 3)),
        "mask": torch.randint(0, 2, (4, 3)),
    }
    return x, torch.tensor([0, 2, 1, 1])


def pair(*wrap: Callable[[Tensor, Tensor], Any]) -> Pair:
    torch.manual_seed(0)
    return Pair(*wrap).double()


OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "a mapping with logits": (lambda scores, other: {"hidden": other, "logits": scores}, None),
    "an object with logits": (lambda scores, other: SimpleNamespace(hidden=other, logits=scores), None),
    "a mapping of one tensor": (lambda scores, other: {"scores": scores, "count": 3}, None),
    "a tuple by index": (lambda scores, other: (other, scores), 1),
    "a mapping by key": (lambda scores, other: {"hidden": other, "scores": scores}, "scores"),
    "an object by attribute": (lambda scores, other: SimpleNamespace(hidden=other, scores=scores), "scores"),
    "a function": (lambda scores, other: (other, [scores]), lambda value: value[1][0]),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_output_is_chosen(kind: str) -> None:
    wrap, output = OUTPUTS[kind]
    x, y = batch()
    options = {"sites": [nn.Linear, nn.Embedding], "copies": 8}
    plain = GLR(pair(), 0.5, **options).gradients(x, y)
    wrapped = GLR(pair(wrap), 0.5, output=output, **options).gradients(x, y)
    assert equal(wrapped.grads, plain.grads)
    assert torch.equal(GLR(pair(wrap), 0.5, output=output)(x), pair()(**x))


@pytest.mark.parametrize(
    ("wrap", "output", "said"),
    [
        (lambda scores, other: (other, scores), None, "a tuple of 2 values: choose its output, such as output=0"),
        (lambda scores, other: {"a": other, "b": scores}, None, "'a', 'b': choose its output, such as output='a'"),
        (lambda scores, other: {"a": other, "b": scores}, "c", "does not return 'c': it returns a mapping with the"),
        (lambda scores, other: (other, scores), 2, "does not return 2: it returns a tuple of 2 values"),
        (lambda scores, other: SimpleNamespace(a=other), "logits", "does not return 'logits': it returns a SimpleNa"),
        (lambda scores, other: "no tensor", None, "returns a str"),
    ],
)
def test_an_output_that_is_not_decided_is_an_error(wrap: Any, output: Any, said: str) -> None:
    with pytest.raises(SiteError, match=said):
        GLR(pair(wrap), 0.5, copies=8, output=output).gradients(*batch())


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("kind", ["mapping", "tuple"])
def test_a_network_of_several_inputs_gets_its_gradient(kind: str) -> None:
    x, y = batch()
    found = slopes(pair(), tuple(x.values()) if kind == "tuple" else x, y, sites=[nn.Linear, nn.Embedding])
    assert {name: slope for name, slope in found.items() if abs(slope.z) > Z} == {}


@pytest.mark.parametrize("estimator", ["conditional", "layerwise", "joint", "pathwise"])
def test_targets_may_be_a_tree(estimator: str) -> None:
    x, y = batch()

    def loss(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return targets["weight"] * cross_entropy(outputs, targets["class"])

    targets = {"class": y, "weight": torch.ones(4)}
    options = {"example_block": 3} if estimator == "pathwise" else {"example_block": 3, "copies": 8}
    weighted = GLR(pair(), 0.5, estimator, **options).gradients(x, targets, loss)
    assert equal(weighted.grads, GLR(pair(), 0.5, estimator, **options).gradients(x, y).grads)


def test_inputs_and_targets_of_two_lengths_are_refused() -> None:
    x, y = batch()
    with pytest.raises(UserError, match="x and y must have one length >= 1, got 4 and 3"):
        GLR(pair(), 0.5).gradients(x, y[:3])
    with pytest.raises(UserError, match="x: every tensor must hold the same number"):
        GLR(pair(), 0.5).gradients({**x, "mask": x["mask"][:2]}, y)
