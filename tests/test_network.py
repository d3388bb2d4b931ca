"""Passes of a network that is cut into segments: records, replays, and the estimates from them."""

from __future__ import annotations

import itertools
from functools import lru_cache

import pytest
import torch
import torch.nn.utils.prune
from test_sites import Residual, network
from torch import Tensor, nn

from glr_dist import GLR
from glr_dist.execution.inline import Inline
from glr_dist.noise import Gaussian
from glr_dist.sites import Site


class TwoBranches(nn.Module):
    """Nested residual blocks, several sites each."""

    def __init__(self) -> None:
        super().__init__()
        self.a = Residual(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)))
        self.b = Residual(nn.Sequential(nn.LayerNorm(4), Residual(nn.Linear(4, 4)), nn.Linear(4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sin(self.a(x)))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    flat, image = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 1, 5, 5, dtype=torch.float64)
    models = {
        "chain": (nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)), flat),
        "nested residual blocks": (nn.Sequential(nn.Linear(4, 4), TwoBranches(), nn.PReLU(), nn.Linear(4, 2)), flat),
        "whole": (Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))), flat),
        "convolutions": (
            nn.Sequential(
                nn.Conv2d(1, 2, 3, stride=2),
                nn.Tanh(),
                Residual(nn.Conv2d(2, 2, 3, padding=1)),
                nn.PReLU(2),
                nn.Flatten(),
                nn.LayerNorm(8),
                nn.Linear(8, 2),
            ),
            image,
        ),
    }
    return {name: (model.double(), x) for name, (model, x) in models.items()}


@pytest.mark.parametrize("name", networks())
def test_replay_from_the_recorded_logits_is_the_pass_bit_by_bit(name: str) -> None:
    model, x = networks()[name]
    net = network(model, x)
    stream = torch.Generator().manual_seed(1)
    shifts = {site.name: torch.randn(len(x), *site.shape, generator=stream).to(x) for site in net.sites}

    def noisy(site: Site, z: Tensor) -> Tensor:
        return z + shifts[site.name]

    with torch.no_grad(), net.hooked():
        outputs, tape = net.record(x, noisy)
        for site in net.sites:
            assert torch.equal(net.replay(site, tape, noisy(site, tape.logits[site.name]), noisy), outputs), site.name
            changed = noisy(site, tape.logits[site.name]) + 0.1
            assert not torch.equal(net.replay(site, tape, changed, noisy), outputs), site.name


@pytest.mark.parametrize("name", networks())
def test_copies_of_a_replay_are_the_pass_each(name: str) -> None:
    model, x = networks()[name]
    net = network(model, x)

    def unchanged(site: Site, z: Tensor) -> Tensor:
        return z

    with torch.no_grad(), net.hooked():
        outputs, tape = net.record(x, unchanged)
        torch.testing.assert_close(outputs, model(x), rtol=0, atol=0)
        for site in net.sites:
            z = tape.logits[site.name]
            again = net.replay(site, tape, z.repeat(3, *[1] * len(site.shape)), unchanged)
            torch.testing.assert_close(again, outputs.repeat(3, *[1] * (outputs.dim() - 1)))


@pytest.mark.parametrize("name", networks())
def test_an_estimate_leaves_no_hook_and_no_change_behind(name: str) -> None:
    model, x = networks()[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    net = GLR(model, copies=4, executor=Inline(1))
    net.estimate(x, torch.zeros(len(x), dtype=torch.long))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_hooks_are_removed_when_an_estimate_fails() -> None:
    model, x = networks()["nested residual blocks"]
    net = GLR(model, executor=Inline(1))
    net.prepare(x)

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("broken loss")

    with pytest.raises(RuntimeError, match="broken loss"):
        net.estimate(x, torch.zeros(len(x)), broken)
    assert not any(module._forward_hooks for module in model.modules())


def test_outside_of_an_estimate_the_model_is_itself() -> None:
    model, x = networks()["nested residual blocks"]
    net = GLR(model, executor=Inline(1))
    before = model(x)
    net.gradients(x, torch.zeros(len(x), dtype=torch.long))
    assert torch.equal(model(x), before)
    assert torch.equal(net(x), before)


@lru_cache
def mean_and_error(name: str, estimator: str, copies: int) -> tuple[Tensor, Tensor]:
    """The mean of 32 estimates, each over 60 repetitions of the six examples, and its standard error."""
    model, x = networks()[name]
    x = x.repeat(60, *[1] * (x.dim() - 1))
    y = torch.arange(6).remainder(2).repeat(60)
    options = {"copies": copies, "sampler": "iid", "example_block": 360} if copies else {"seed": 1}
    net = GLR(model, Gaussian(0.6, learn="site"), estimator, executor=Inline(1), **options)
    net.prepare(x)
    drawn = []
    for net.step in range(32):
        found = net.gradients(x, y)
        assert found.grads.keys() == dict(model.named_parameters()).keys()
        grads = [*(found.grads[n] for n, _ in model.named_parameters()), *(found.scales[s] for s in found.scales)]
        drawn.append(torch.cat([g.flatten() for g in grads]))
    values = torch.stack(drawn)
    return values.mean(0), values.std(0) / len(values) ** 0.5


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("estimator", ["conditional", pytest.param("joint", marks=pytest.mark.long)])
def test_estimates_agree_with_pathwise(name: str, estimator: str) -> None:
    """Both are unbiased for J: their means differ by at most 4.5 standard errors, parameter by parameter."""
    truth, truth_error = mean_and_error(name, "pathwise", 0)
    mean, error = mean_and_error(name, estimator, {"conditional": 16, "joint": 32}[estimator])
    z = (mean - truth).abs() / (error.square() + truth_error.square()).sqrt()
    assert z.max() <= 4.5
    # The bound must be able to fail: an estimate of nothing, and one a third too large, would be far outside.
    precision = torch.linalg.vector_norm(error) / torch.linalg.vector_norm(truth)
    assert precision < 0.07, f"standard error {precision:.1%} of the gradient"


def test_targets_and_inputs_keep_their_order_over_example_blocks() -> None:
    """A deterministic loss of the targets alone: its mean does not depend on how the batch is cut."""
    model, x = networks()["chain"]
    y = torch.arange(6, dtype=torch.float64)
    found = [
        GLR(model, copies=2, sampler="iid", executor=Inline(1), example_block=block).gradients(
            x, y, lambda outputs, targets: targets * outputs[:, 0].ge(-1e9)
        )
        for block in (4, 6, 1)
    ]
    for one, other in itertools.pairwise(found):
        torch.testing.assert_close(one.loss, other.loss)
        assert all((grad.abs() < 1e-12).all() for grad in one.grads.values())


@pytest.mark.slow
@pytest.mark.parametrize("alter", ["hook", "prune"])
def test_a_layer_that_a_hook_or_a_reparametrisation_altered_still_gets_its_gradient(alter):
    """The layer's own rule would ignore a hook that triples the output, and fail on a pruned weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    if alter == "hook":
        model[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    else:
        torch.nn.utils.prune.identity(model[0], "weight")
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).double().repeat(50, 1)
    y = (torch.arange(16) % 2).repeat(50)
    found = GLR(model, Gaussian(0.5), copies=300, executor=Inline(1)).gradients(x, y).grads
    true = GLR(model, Gaussian(0.5), "pathwise", passes=40, executor=Inline(1)).gradients(x, y).grads
    for name, grad in true.items():
        assert (found[name] - grad).norm() < 0.3 * grad.norm()
