"""Batch normalization with the statistics of the shared pass."""

from __future__ import annotations

import copy

import pytest
import torch
from slopes import Z, repeated
from torch import Tensor, nn

from glr_dist import GLR
from glr_dist.errors import SiteError
from glr_dist.nn import SharedBatchNorm, fixed
from glr_dist.nn.batch_norm import moments
from glr_dist.streams import Key


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 1 + 2 * torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 3),
    ).double()


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 2, 5), (6, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_outside_of_an_estimate_it_is_torchs(shape: tuple[int, ...], training: bool) -> None:
    torch.manual_seed(0)
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](3).double()
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    norm(torch.randn(shape, dtype=torch.float64))
    own, changes = fixed(norm.train(training), batch_norm="shared")
    assert isinstance(own, SharedBatchNorm)
    assert "statistics of the shared pass" in str(changes)
    assert own.state_dict().keys() == norm.state_dict().keys()
    x = torch.randn(shape, dtype=torch.float64)
    before = copy.deepcopy(own.state_dict())
    torch.testing.assert_close(own(x), norm(x))
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), before.values(), strict=True))


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("options", [{"passes": 2}, {"estimator": "layerwise"}, {"estimator": "pathwise"}], ids=str)
def test_the_running_statistics_move_once_a_step_as_torchs(momentum: float | None, options: dict[str, object]) -> None:
    """In front of the first site, the statistics do not depend on the noise."""
    x, y = images()
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=momentum), nn.Flatten(), nn.Linear(32, 3)).double()
    reference = copy.deepcopy(model[0])
    own, _ = fixed(model, batch_norm="shared")
    net = GLR(own, 0.3, seed=2, **options)
    for _ in range(3):
        net.estimate(x, y)
        reference(x)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(own[0].state_dict()[name], value)


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("estimator", ["conditional", "layerwise"])
def test_the_gradient_is_that_with_the_statistics_fixed(estimator: str) -> None:
    x, y = (repeated(part, 400) for part in images())  # so many that the noise does not move the statistics
    shared, _ = fixed(network(), batch_norm="shared")
    options = {"noise": 0.3, "seed": 1, "example_block": len(x)}
    constant = copy.deepcopy(shared)
    inputs: dict[str, Tensor] = {}
    for name in ("1", "5"):
        norm = constant.get_submodule(name)
        norm.register_forward_hook(lambda module, args, output, name=name: inputs.__setitem__(name, args[0]))
    net = GLR(constant, **options, verify=False)
    for name in ("1", "5"):  # fixes the first before the second is measured
        if estimator == "layerwise":
            constant(x)
        else:
            net.noisy(x, Key(5))
        norm = constant.get_submodule(name)
        norm.running_mean, norm.running_var, _ = moments(inputs[name].detach())
        norm.eval()
    expected = GLR(constant, estimator="pathwise", **options, verify=False) if estimator == "conditional" else None
    reference = expected.gradients(x, y).grads if expected else None
    net = GLR(shared, estimator=estimator, copies=16, **options)
    if reference is None:
        reference = (
            GLR(constant, estimator=estimator, copies=200, **{**options, "seed": 7}, verify=False).gradients(x, y).grads
        )
    drawn = []
    for step in range(12):
        net.step = step
        drawn.append(net.gradients(x, y).grads)
    for name, gradient in reference.items():
        each = torch.stack([(grads[name] * gradient).sum() for grads in drawn]) / gradient.square().sum()
        error = (each.std() / len(each) ** 0.5).clamp(min=0.02)
        assert abs(each.mean() - 1) < Z * error, (name, each.mean(), error)


def test_joint_and_plain_batch_norm_are_refused_with_a_remedy() -> None:
    x, y = images()
    with pytest.raises(SiteError, match=r"'1' is a BatchNorm2d in training mode.*glr_dist\.nn\.fixed\(model\)"):
        GLR(network(), 0.3).estimate(x, y)
    shared, _ = fixed(network(), batch_norm="shared")
    with pytest.raises(SiteError, match=r"'1' \(SharedBatchNorm\) needs the statistics of a shared pass"):
        GLR(shared, 0.3, "joint").estimate(x, y)
    GLR(shared, 0.3, copies=8).estimate(x, y)
    GLR(shared.eval(), 0.3, "joint", copies=8).estimate(x, y)


def test_what_cannot_be_shared_is_told() -> None:
    with pytest.raises(ValueError, match="batch_norm 'none' is not allowed: 'group', 'shared'"):
        fixed(network(), batch_norm="none")
    model, changes = fixed(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), batch_norm="shared")
    assert isinstance(model[0], nn.BatchNorm1d)
    assert "has no running statistics" in str(changes)
