"""Cases of the table of networks: each gets its gradient, or one line whose remedy makes it right.

A case is right if the slope of every parameter's estimates deviates from 1 by at most Z standard errors, and these are
at most `ERROR`: a slope outside 1 ± Z · ERROR cannot pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from slopes import Z, slopes
from torch import Tensor, nn

from glr_dist import GLR
from glr_dist.errors import UserError
from glr_dist.losses import cross_entropy
from glr_dist.trees import Tree, mapped

N = 3  # examples
ERROR = 0.1
FAST: dict[str, Any] = {"noise": 0.3, "repeats": 48, "copies": 16, "samples": 3000}
STEPS = (10, 40, 160)  # more of them where fewer do not tell

Build = Callable[[], nn.Module]
Remedy = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Case:
    """A network, what it is given, and what must become of it.

    Attributes:
        build: builds the network.
        x: inputs, or the shape of one example.
        options: what `slopes` takes beside the network and the batch.
        y: targets; by default classes 0, 0 and 1 of three.
        says: the error, if the network is refused; a pattern.
        remedy: what the error advises: from the refused network to another one.
        remedied: options in addition to `options`, or other inputs `x`, once the remedy is applied.
    """

    build: Build
    x: Tree = (4,)
    options: dict[str, Any] = field(default_factory=dict)
    y: Tree = None
    says: str | None = None
    remedy: Remedy = lambda model: model
    remedied: dict[str, Any] = field(default_factory=dict)

    def batch(self) -> tuple[Tree, Tree]:
        """Returns the inputs, floating-point ones in float64, and the targets."""
        torch.manual_seed(1)
        x = torch.randn(N, *self.x) if isinstance(self.x, tuple) and _is_shape(self.x) else self.x
        y = torch.tensor([0, 0, 1]) if self.y is None else self.y
        return mapped(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, x), y


def _is_shape(x: Sequence[object]) -> bool:
    return all(isinstance(size, int) for size in x)


def check(case: Case) -> None:
    """Checks that a network gets its gradient, or that it is refused and its remedy works.

    Raises:
        AssertionError: a slope is not 1, or too uncertain.
    """
    model = built(case.build)
    if case.says is None:
        check_slopes(case, model)
        return
    x, y = case.batch()
    options = {"noise": FAST["noise"], "loss": cross_entropy, **case.options}
    noise, loss = options.pop("noise"), options.pop("loss")
    options.pop("differences", None)
    with pytest.raises(UserError, match=case.says) as refused:
        GLR(model, noise, **{**options, "copies": 4}).estimate(x, y, loss)
    assert "\n" not in str(refused.value)
    torch.manual_seed(0)
    given = {name: value for name, value in case.remedied.items() if name != "x"}
    after = replace(case, x=case.remedied.get("x", case.x), options={**case.options, **given})
    check_slopes(after, case.remedy(model).double())


def check_slopes(case: Case, model: nn.Module) -> None:
    x, y = case.batch()
    check_slopes_of(model, x, y, **case.options)


def check_slopes_of(model: nn.Module, x: Tree, y: Tree, **options: Any) -> None:
    """Checks the slopes of a network; takes more steps while they are too uncertain, or one deviates in few steps."""
    for steps in STEPS:
        found = slopes(model, x, y, **{**FAST, "steps": steps, **options})
        assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if all(slope.error <= ERROR and abs(slope.z) <= Z for slope in found.values()):
            break
    assert {name: slope for name, slope in found.items() if abs(slope.z) > Z} == {}
    assert {name: slope for name, slope in found.items() if slope.error > ERROR} == {}, "too few estimates to tell"


def lanes(cases: Collection[str], long: set[str]) -> list[ParameterSet]:
    """Returns the names of cases as parameters of a test: every fourth runs after each edit, every second by default.

    Args:
        cases: the names.
        long: those that take longest, which run in the lane `long` alone.
    """
    assert long <= set(cases)
    by_place = ([], [pytest.mark.long], [pytest.mark.slow], [pytest.mark.long])
    return [
        pytest.param(name, marks=[pytest.mark.long] if name in long else by_place[place % 4])
        for place, name in enumerate(cases)
    ]


def built(build: Build) -> nn.Module:
    """Builds a network in float64, the same each time."""
    torch.manual_seed(0)
    return build().double()


# ---------------------------------------------------------------- parts of networks


class Function(nn.Module):
    """A function of the values before it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Any:
        return self.function(*x)


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def fresh(module: nn.Module) -> nn.Module:
    """Returns a copy with initial weights of its own."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module


def headed(*modules: nn.Module, x: Tree = (4,)) -> nn.Sequential:
    """Returns the modules and a linear head of three classes, for inputs of a shape."""
    body = nn.Sequential(*map(fresh, modules), nn.Flatten())
    dtype = next((parameter.dtype for parameter in body.parameters()), torch.float32)
    example = torch.randn(N, *x) if isinstance(x, tuple) and _is_shape(x) else x
    modes = [(module, module.training) for module in body.modules()]
    with torch.no_grad():
        features = body.eval()(example.to(dtype) if example.is_floating_point() else example).shape[1]
    for module, mode in modes:
        module.training = mode
    return nn.Sequential(*body, nn.Linear(features, 3))
