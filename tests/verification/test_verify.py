"""Networks on which a gradient would be wrong: each is trained right, or refused with a remedy that is then right."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from ray import cloudpickle
from slopes import Z, slopes
from torch import Tensor, nn

from glr_dist import GLR, glr, network
from glr_dist.errors import SiteError, UserError
from glr_dist.nn import Dropout, opened
from glr_dist.rules import RULES
from glr_dist.rules.linear import linear
from glr_dist.sites import Site
from glr_dist.trees import equal

pytestmark = pytest.mark.montecarlo


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class TiedEmbedding(nn.Module):
    """Its weight reaches the output both as the embedding and as the layer's own."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding, self.between, self.out = nn.Embedding(7, 5), between or nn.Identity(), nn.Linear(5, 7)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.between(self.embedding(tokens).mean(1)))


class TiedAutoencoder(nn.Module):
    """One weight, used as it is and transposed, in one segment."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(torch.tanh(x @ self.code.weight.T))


class Recurrent(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation, self.cell, self.head = activation, nn.Linear(3 + 4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            h = self.activation(self.cell(torch.cat([x[:, t], h], 1)))
        return self.head(h)


class Opened(nn.Module):
    """An opened recurrent layer and a head at its last time step."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = opened(layer), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Siamese(nn.Module):
    """One branch for both halves of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = nn.Sequential(nn.Linear(2, 4), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.branch(x[:, :2]), self.branch(x[:, 2:])], 1))


class TwoDropouts(nn.Module):
    """One dropout module in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.dropout = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3), Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.tanh(self.a(x)))
        return self.c(self.dropout(torch.tanh(self.b(x))))


class Leaky(nn.Module):
    """A leaky integrator, which forgets its state only if told to."""

    def __init__(self, reset: bool) -> None:
        super().__init__()
        self.reset, self.state = reset, None

    def forward(self, x: Tensor) -> Tensor:
        if self.reset or self.state is None or self.state.shape != x.shape:
            self.state = torch.zeros_like(x)
        self.state = 0.9 * self.state + x
        return self.state


class Running(nn.Module):
    """Subtracts a running mean, which it moves in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return x - self.mean


class OtherChain(nn.Module):
    """Its chain leaves an activation out."""

    def __init__(self, *more: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.more = nn.Linear(4, 4), nn.Linear(4, 3), nn.ModuleList(more)

    def chain(self) -> list[nn.Module]:
        return [self.a, *self.more, self.b]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Adds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x


def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
    """InfoNCE, which compares each example with all others."""
    return -torch.log_softmax(outputs @ outputs.T, 1).diagonal()


def jump_up(u: Tensor) -> Tensor:
    return torch.where(u > 0, u + 1, 0 * u)


def chain(*modules: nn.Module, head: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *modules, nn.Linear(head, 3))


def normed(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    return chain(nn.LayerNorm(4), Function(function))


def shared(times: int) -> nn.Sequential:
    cell = nn.Linear(4, 4)
    return nn.Sequential(*[link for _ in range(times) for link in (cell, nn.Tanh())], nn.Linear(4, 3))


def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    if isinstance(model, TiedEmbedding):
        return torch.randint(0, 7, (4, 5)), torch.tensor([0, 1, 6, 3])
    shape = (4, 3, 3) if isinstance(model, (Recurrent, Opened)) else (4, 4)
    return torch.randn(shape, dtype=torch.float64), torch.tensor([0, 1, 2, 1])


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().double()


RIGHT: dict[str, tuple[Callable[[], nn.Module], dict[str, object]]] = {
    "a chain": (lambda: chain(nn.Tanh()), {}),
    "a tied embedding": (TiedEmbedding, {}),
    "a tied embedding behind a norm": (lambda: TiedEmbedding(nn.LayerNorm(5)), {}),
    "a weight used twice in one segment": (TiedAutoencoder, {}),
    "one module at three depths": (lambda: shared(3), {}),
    "a siamese branch": (Siamese, {}),
    "a recurrent cell": (lambda: Recurrent(torch.tanh), {}),
    "a recurrent cell, joint": (lambda: Recurrent(torch.tanh), {"estimator": "joint", "copies": 512}),
    "an opened GRU over time": (lambda: Opened(nn.GRU(3, 3, batch_first=True)), {}),
    "an opened LSTM over time": (lambda: Opened(nn.LSTM(3, 3, 2, batch_first=True)), {}),
    "one dropout in two places": (TwoDropouts, {"copies": 64}),
    "a norm before a kink": (lambda: chain(nn.LayerNorm(4), nn.ReLU()), {}),
    "kinks inside one segment": (lambda: chain(nn.ReLU(), nn.Linear(4, 4), nn.ReLU()), {"site_names": ["4"]}),
    "in place on a block's input": (lambda: chain(Residual(nn.Hardswish(inplace=True), nn.Linear(4, 4))), {}),
    "in place on the batch": (lambda: nn.Sequential(Adds(), chain(nn.Tanh())), {}),
    "in place on the batch, joint": (
        lambda: nn.Sequential(Adds(), chain(nn.ReLU(inplace=True))),
        {"estimator": "joint", "copies": 512},
    ),
    "in place after a view": (lambda: chain(nn.Flatten(), nn.ReLU(inplace=True), nn.LayerNorm(4)), {}),
    "state that each pass resets": (lambda: chain(Leaky(reset=True)), {}),
}
LONG_RIGHT = ("a recurrent cell, joint", "an opened LSTM over time")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] * (case in LONG_RIGHT)) for case in RIGHT]
)
def test_a_network_that_is_accepted_gets_its_gradient(case: str) -> None:
    build, options = RIGHT[case]
    model = made(build)
    x, y = batch(model)
    before = x.clone()
    found = slopes(model, x, y, **options)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert {name: slope for name, slope in found.items() if abs(slope.z) > Z} == {}
    assert all(slope.error < 0.3 for slope in found.values()), "too few estimates to tell"
    assert torch.equal(x, before)


# name: network, loss, options, what the error says, and the remedy: another network, options, loss
Refused = tuple[Callable[[], nn.Module], dict[str, object], str, Callable[[], nn.Module], dict[str, object]]
LAYERS_AND_NORMS = {"sites": [nn.Linear, nn.LayerNorm], "differences": True}
REFUSED: dict[str, Refused] = {
    "a norm before sign": (
        lambda: normed(torch.sign),
        {},
        r"'1\.\w+' acts on the logits of site '3' through a jump.*'1' \(LayerNorm\) a site too",
        lambda: normed(torch.sign),
        LAYERS_AND_NORMS,
    ),
    "a norm before round": (
        lambda: normed(torch.round),
        {},
        r"'1\.\w+' acts on the logits of site '3' through a jump",
        lambda: normed(torch.round),
        LAYERS_AND_NORMS,
    ),
    "a norm before floor": (
        lambda: normed(torch.floor),
        {},
        r"'1\.\w+' acts on the logits of site '3' through a jump",
        lambda: normed(torch.floor),
        LAYERS_AND_NORMS,
    ),
    "a layer before a jump and a slope": (
        lambda: chain(Function(jump_up)),
        {"site_names": ["2"]},
        r"'0\.\w+' acts on the logits of site '2' through a jump.*'0' \(Linear\)",
        lambda: chain(Function(jump_up)),
        {"differences": True},
    ),
    "a recurrent sign cell left out": (
        lambda: Recurrent(torch.sign),
        {"site_names": ["head"]},
        r"'cell\.\w+' acts on the logits of site 'head' through a jump.*'cell' \(Linear\) a site too",
        lambda: Recurrent(torch.sign),
        {"differences": True},
    ),
    "a centred batch": (
        lambda: chain(Function(lambda x: x - x.mean(0))),
        {},
        r"'1' \(Function\) couples the examples",
        lambda: chain(nn.LayerNorm(4)),
        {},
    ),
    "a scaled batch": (
        lambda: chain(nn.Tanh(), Residual(Function(lambda x: x / x.norm()))),
        {},
        r"'2\.inner\.0' \(Function\) couples the examples",
        lambda: chain(nn.Tanh(), Residual(nn.GroupNorm(2, 4))),
        {},
    ),
    "examples that see those before them": (
        lambda: chain(Function(lambda x: x.cumsum(0))),
        {},
        r"'1' \(Function\) couples the examples",
        lambda: chain(Function(lambda x: x.cumsum(1))),
        {},
    ),
    "a loss over the batch": (
        lambda: chain(nn.Tanh()),
        {"loss": contrast},
        "loss: the loss of an example depends on the other examples",
        lambda: chain(nn.Tanh()),
        {},
    ),
    "state between passes": (
        lambda: chain(Leaky(reset=False)),
        {},
        r"'1' \(Leaky\) returns different outputs for equal inputs",
        lambda: chain(Leaky(reset=True)),
        {},
    ),
    "running statistics": (
        lambda: chain(Running()),
        {},
        r"'1' \(Running\) changes its buffer '1\.mean'",
        lambda: chain(Running()).eval(),
        {},
    ),
    "random numbers of its own": (
        lambda: chain(Function(lambda x: x + torch.randn(x.shape, generator=STREAM, dtype=x.dtype))),
        {},
        r"'1' \(Function\) returns different outputs for equal inputs",
        lambda: chain(Dropout(0.2)),
        {},
    ),
    "a chain that is another network": (
        OtherChain,
        {},
        r"OtherChain\.chain\(\) is another network than forward\(\)",
        lambda: OtherChain(nn.Tanh()),
        {},
    ),
}
STREAM = torch.Generator()
# As "a norm before sign", and as the recurrent cells of the other tests.
LONG = ("a norm before round", "a norm before floor", "a recurrent sign cell left out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long) if case in LONG else case for case in REFUSED]
)
def test_a_network_that_would_get_a_wrong_gradient_is_refused_and_its_remedy_works(case: str) -> None:
    build, options, said, remedy, remedied = REFUSED[case]
    model = made(build)
    x, y = batch(model)
    with pytest.raises(UserError, match=said):
        slopes(model, x, y, **options)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model = made(remedy)
    found = slopes(model, x, y, noise=1.0 if remedied.get("differences") else 0.5, **remedied)
    assert {name: slope for name, slope in found.items() if abs(slope.z) > Z} == {}


# ---------------------------------------------------------------- changes after the first step


def descended(change: Callable[[nn.Module], object]) -> tuple[float, float]:
    """Returns the losses before and after training a network that has changed after its first step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = batch(model)
    net = GLR(model, 0.3, copies=32)
    net.estimate(x, y)
    change(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(net.estimate(x, y).item())
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
    return losses[0], losses[-1]


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "assigned state": lambda model: model.load_state_dict(
        {k: v + 0.1 for k, v in model.state_dict().items()}, assign=True
    ),
    "another layer": lambda model: model.__setitem__(2, nn.Linear(8, 3).double()),
    "another activation": lambda model: model.__setitem__(1, nn.Sigmoid()),
    "another parameter": lambda model: setattr(model[0], "bias", nn.Parameter(torch.zeros(8, dtype=torch.float64))),
    "a hook": lambda model: model[0].register_forward_hook(lambda module, args, output: 2 * output),
    "one more layer": lambda model: model.append(nn.Linear(3, 3).double()),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_changes_after_a_step_goes_on_learning(change: str) -> None:
    first, last = descended(CHANGES[change])
    assert last < 0.7 * first


def test_a_network_that_becomes_wrong_after_a_step_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 1])
    net = GLR(model, 0.3, copies=4)
    net.estimate(x, y)
    model[1] = Function(lambda x: x - x.mean(0))
    with pytest.raises(SiteError, match=r"'1' \(Function\) couples"):
        net.estimate(x, y)


# ---------------------------------------------------------------- the verification itself


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: cloudpickle.loads(cloudpickle.dumps(net))], ids=["copy", "pickle"]
)
def test_a_copy_is_prepared_and_verified_as_its_original_until_it_changes(
    copied: Callable[[GLR], GLR], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    for name in ("survey", "verify"):
        module = glr if name == "verify" else network
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, f=function, **k: (passes.append(name), f(*a, **k))[1])
    x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 1])
    net = GLR(chain(nn.Tanh()), 0.3, copies=4)
    net.estimate(x, y)
    net.estimate(x, y)
    assert passes == ["survey", "verify"]
    other = copied(net)
    assert equal(other.gradients(x, y).grads, net.gradients(x, y).grads)
    assert passes == ["survey", "verify"]
    other.model[1] = nn.ReLU()
    other.estimate(x, y)
    net.estimate(x, y)
    assert passes == ["survey", "verify"] * 2
    net.estimate(x, y, lambda outputs, targets: outputs.square().sum(1))
    assert passes == ["survey", "verify"] * 2 + ["verify"]


def test_verification_can_be_turned_off_and_changes_no_bits() -> None:
    grads = []
    for verify in (True, False):
        torch.manual_seed(0)
        model = chain(nn.LayerNorm(4), nn.ReLU(inplace=True))
        x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 1])
        state = torch.get_rng_state()
        net = GLR(model, 0.3, copies=4, verify=verify)
        net.estimate(x, y)
        assert torch.equal(torch.get_rng_state(), state)
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_wrong_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(module: nn.Module, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
        return {name: 2 * grad for name, grad in linear(module, x, delta).items()}

    monkeypatch.setitem(RULES, nn.Linear, twice)
    x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 1])
    with pytest.raises(SiteError, match=r"the rule for Linear gives another gradient of '0\.weight'"):
        GLR(chain(nn.Tanh()), 0.3, copies=4).estimate(x, y)


def test_the_harness_finds_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tied weight's rule, which knows the layer's product alone, the slope is far from 1."""

    def blind(network: object, site: Site) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
        return lambda x, delta: {
            {"weight": "embedding.weight", "bias": "out.bias"}[name]: grad
            for name, grad in linear(site.module, x, delta).items()
        }

    monkeypatch.setattr(glr, "direct_rule", blind)
    model = made(TiedEmbedding)
    found = slopes(model, *batch(model), verify=False)
    assert found["embedding.weight"].slope < 0.8
    assert abs(found["out.bias"].z) < Z


@pytest.mark.parametrize("length", [2, 4])
def test_another_number_of_calls_is_an_error(length: int) -> None:
    net = GLR(Recurrent(torch.tanh), 0.3, copies=4)
    y = torch.tensor([0, 1, 2, 1])
    net.estimate(torch.randn(4, 3, 3), y)
    with pytest.raises(SiteError, match=r"'cell' ran .* times in a pass, 3 times when the network was prepared"):
        net.estimate(torch.randn(4, length, 3), y)
    net.prepare(torch.randn(4, length, 3))
    net.estimate(torch.randn(4, length, 3), y)
