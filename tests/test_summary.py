"""`net.summary(x)` and `glr-dist summary`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from glr_dist import GLR
from glr_dist.cli import main
from glr_dist.losses import zero_one
from glr_dist.nn import Heaviside
from glr_dist.noise import Gaussian


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.shared = nn.LayerNorm(5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(torch.tanh(self.shared(self.norm(x))))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Twice(), nn.Linear(5, 3, bias=False))


def test_a_summary_tells_how_each_parameter_gets_its_gradient() -> None:
    model, x = network(), torch.randn(6, 4)
    model[0].bias.requires_grad_(False)
    net = GLR(model, {"0": 0.5, "*": 0.2}, copies={"0": 10, "*": 4}, passes=2)
    found = net.summary(x)
    assert [(row.name, row.calls, row.units, row.copies, row.passes, row.scale) for row in found.rows] == [
        ("0", 1, 5, 10, 2, pytest.approx((0.5, 0.5))),
        ("2.shared", 2, 5, 4, 2, pytest.approx((0.2, 0.2))),
        ("3", 1, 3, 4, 2, pytest.approx((0.2, 0.2))),
    ]
    assert [row.by_rule for row in found.rows] == [("0.weight",), ("2.shared.weight", "2.shared.bias"), ("3.weight",)]
    assert [row.by_autograd for row in found.rows] == [(), ("2.norm.weight", "2.norm.bias"), ()]
    assert (found.trained, found.frozen, found.by_autograd) == (20 + 10 + 30 + 15, 5, 10)
    assert (found.copies, found.forward_passes) == net.cost(x, torch.zeros(6, dtype=torch.long))
    lines = str(found).splitlines()
    assert lines[0].split() == ["site", "type", "calls", "D", "suffix", "K", "M", "redraw", "sigma", "gradient", "of"]
    assert "2.shared.weight, 2.shared.bias by rule; 2.norm.weight, 2.norm.bias by autograd" in lines[2]


def test_a_summary_tells_how_each_site_redraws() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4), Heaviside(), nn.Linear(4, 3))
    net = GLR(model, 0.5, copies=8, redraw={"3": "flips", "*": "auto"}, head="expected")
    found = net.summary(torch.randn(3, 1, 10, 10), zero_one)
    assert [row.redraw for row in found.rows] == ["column_space (20)", "flips", "-"]
    assert " column_space (20)  " in str(found)


def test_a_summary_gives_the_range_of_learned_scales() -> None:
    net = GLR(network(), Gaussian(0.5, learn="unit"))
    x = torch.randn(6, 4)
    net.prepare(x)
    with torch.no_grad():
        net.log_scales["0"][0] = 0.0
    assert net.summary(x).rows[0].scale == pytest.approx((0.5, 1.0))
    assert "0.5-1 " in str(net.summary(x))


def test_a_summary_of_backpropagation_says_so() -> None:
    found = GLR(network(), None, "pathwise").summary(torch.randn(6, 4))
    assert found.rows[0].scale is None
    assert found.by_autograd == found.trained


def test_the_command_prints_the_summary_of_a_configuration(tiny_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(tiny_yaml), "estimator.copies=6"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("site")
    assert "a step of conditional: 12 noisy copies per example" in printed
