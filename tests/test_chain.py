"""Chains: the blocks into which a network is taken apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from glr_dist.chain import chain
from glr_dist.sites import SiteError


class Listed(nn.Module):
    """Gives its chain; submodules are in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())

    def chain(self) -> list[nn.Module]:
        return [self.body, self.last]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))


class Whole(Listed):
    """Any other module: no chain."""

    chain = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh()), ["0", "1"]),
        (nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)), ["0.0", "0.1", "1"]),
        (Listed(), ["body.0", "body.1", "last"]),
        (nn.Sequential(Listed(), nn.Tanh()), ["0.body.0", "0.body.1", "0.last", "1"]),
        (Whole(), [""]),
        (nn.Sequential(Whole(), nn.Tanh()), ["0", "1"]),
    ],
)
def test_chain_is_flat_and_runs_as_the_model(model: nn.Module, names: list[str]) -> None:
    x = torch.randn(5, 3)
    h = x
    blocks = chain(model)
    for block in blocks:
        h = block.module(h)
    assert [block.name for block in blocks] == names
    assert torch.equal(h, model(x))


def test_chain_repeats_a_repeated_link() -> None:
    link = nn.Tanh()
    assert [block.name for block in chain(nn.Sequential(link, nn.Sigmoid(), link))] == ["0", "1", "0"]


def test_a_sequential_with_a_forward_of_its_own_is_not_taken_apart() -> None:
    class Other(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    assert [block.name for block in chain(nn.Sequential(Other(nn.Linear(3, 3)), nn.Tanh()))] == ["0", "1"]


def test_chain_of_a_stranger_is_an_error() -> None:
    class Wrong(nn.Module):
        def chain(self) -> list[nn.Module]:
            return [nn.Tanh()]

    with pytest.raises(SiteError, match=r"Wrong\.chain\(\): contains a Tanh that is not a submodule"):
        chain(Wrong())
