from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

from glr_dist import GLR, losses
from glr_dist.chain import chain
from glr_dist.execution.inline import Inline
from glr_dist.network import Network
from glr_dist.noise import Gaussian
from glr_dist.sites import Site, SiteError, by_site


class Residual(nn.Module):
    """A nested site, and its input around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


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


def network(model: nn.Module, x: Tensor, **options: object) -> Network:
    found = Network(model, **options)  # type: ignore[arg-type]
    found.prepare(x, keep_inputs=lambda _: True)
    return found


# ---------------------------------------------------------------- chains


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


# ---------------------------------------------------------------- sites and segments


def test_segments_own_all_parameters_since_the_site_before() -> None:
    model = nn.Sequential(
        nn.LayerNorm(3),
        nn.Linear(3, 4),
        nn.PReLU(),
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        nn.Tanh(),
        nn.Linear(4, 2),
    )
    sites = network(model, torch.randn(5, 3)).sites
    assert [(site.index, site.name, site.block, site.start) for site in sites] == [
        (0, "1", 1, 0),
        (1, "3.0", 3, 2),
        (2, "5", 6, 4),
    ]
    assert [site.owned for site in sites] == [
        ("0.weight", "0.bias", "1.weight", "1.bias"),
        ("2.weight", "3.0.weight", "3.0.bias"),
        ("3.1.weight", "3.1.bias", "5.weight", "5.bias"),
    ]
    assert [(site.top, site.units) for site in sites] == [(True, 4), (True, 4), (True, 2)]


def test_nested_sites_are_found_with_their_block_and_in_the_order_of_their_calls() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Residual(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))))
    sites = network(nn.Sequential(*model, nn.Linear(3, 2)), torch.randn(5, 3)).sites
    assert [(site.name, site.block, site.top, site.start) for site in sites] == [
        ("0", 0, True, 0),
        ("1.inner.0", 1, False, 1),
        ("1.inner.2", 1, False, 1),
        ("2", 2, True, 2),  # what the block adds around its last site comes from the noisy logits of "0" alone
    ]


def test_suffix_is_the_share_of_flops_after_a_site() -> None:
    """A nested site, and a model that gives no chain, run their block again."""
    layers = nn.Linear(10, 30), nn.Linear(30, 30), nn.Linear(30, 10)
    flops = [300, 900, 300]
    x = torch.randn(4, 10)
    assert [s.suffix for s in network(nn.Sequential(*layers), x).sites] == [1200 / sum(flops), 300 / sum(flops), 0]
    nested = nn.Sequential(layers[0], Residual(layers[1]), layers[2])
    assert [s.suffix for s in network(nested, x).sites] == [1200 / sum(flops), 1200 / sum(flops), 0]
    assert [s.suffix for s in network(Whole(), torch.randn(4, 3)).sites] == [1, 1]


def test_only_modules_of_the_types_and_names_asked_for_are_sites() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))
    x = torch.randn(3, 1, 4, 4)
    assert [site.name for site in network(model, x).sites] == ["0", "2", "3"]
    model[0].requires_grad_(False)
    assert [site.name for site in network(model, x, types=[nn.Linear]).sites] == ["2", "3"]
    assert [site.owned for site in network(model, x, names=["3"]).sites] == [tuple(network(model, x).parameters)]
    assert network(nn.Sequential(*model, nn.Tanh()), x, types=[nn.Tanh]).sites[0].name == "4"


def test_frozen_parameters_need_no_site() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model[1].requires_grad_(False)
    assert network(model, torch.randn(2, 3)).sites[0].owned == ("0.weight", "0.bias")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, {"a.0": 3, "a.1": 3, "b": 3}),
        ({"a.*": 1, "*": 2}, {"a.0": 1, "a.1": 1, "b": 2}),
        ({"*": 2, "a.*": 1}, {"a.0": 2, "a.1": 2, "b": 2}),
        ({"a.0": 1, "a.1": 2, "b": 3}, {"a.0": 1, "a.1": 2, "b": 3}),
    ],
)
def test_by_site_takes_the_first_pattern_that_matches(value: object, expected: dict[str, int]) -> None:
    assert by_site(value, ["a.0", "a.1", "b"], "option") == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": 1, "c": 2}, "option: the pattern 'c' matches no site; the sites are a, b"),
        ({"a": 1}, "option: no pattern of a matches the site 'b'"),
    ],
)
def test_by_site_names_a_pattern_without_a_site_and_a_site_without_a_pattern(value: dict[str, int], said: str) -> None:
    with pytest.raises(SiteError, match=said):
        by_site(value, ["a", "b"], "option")


@pytest.mark.parametrize("option", ["copies", "passes", "noise"])
def test_a_pattern_without_a_site_is_named_with_its_option(option: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    noise = Gaussian({"0": 1.0, "no*": 1.0}) if option == "noise" else Gaussian()
    options = {} if option == "noise" else {option: {"0": 2, "no*": 2}}
    net = GLR(model, noise, **options)
    with pytest.raises(SiteError, match=r"(estimator\.|noise\.)\w+: the pattern 'no\*' matches no site"):
        net.prepare(torch.randn(2, 3))


# ---------------------------------------------------------------- networks that cannot be trained


class Twice(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.shared, self.times = nn.Linear(3, 3), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.shared(x)
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x[:, None], x[:, None], x[:, None])[0][:, 0]


class Around(nn.Module):
    """A parameter that reaches the loss both through the sites and around them."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.site = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gain * x
        return x + self.site(x)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare, self.site = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.site(x)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def head(*before: nn.Module) -> nn.Sequential:
    return nn.Sequential(*before, nn.Linear(3, 2))


UNTRAINABLE: dict[str, tuple[nn.Module, str]] = {
    "no site": (nn.Sequential(nn.LayerNorm(3)), "the network has no site"),
    "a site run twice": (head(Twice(2)), r"site '0\.shared' ran 2 times in one pass"),
    "a site run never": (head(Twice(0)), r"site '0\.shared' ran 0 times in one pass"),
    "a link used twice": (
        (lambda link: nn.Sequential(link, nn.Tanh(), link))(nn.Linear(3, 3)),
        r"site '0' ran 2 times",
    ),
    "a site without a forward hook": (head(Attention()), r"site '0\.heads\.out_proj' ran 0 times"),
    "batch norm": (
        head(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))),
        r"'0\.1' is a BatchNorm1d in training mode",
    ),
    "plain dropout": (head(nn.Linear(3, 3), nn.Dropout(0.5)), r"'1' \(Dropout\) draws from torch's global generator"),
    "nested plain dropout": (
        head(Residual(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))),
        r"'0\.inner\.1' \(Dropout\) draws from torch's global generator",
    ),
    "a tuple": (head(Function(lambda x: (x, x))), r"block '0' returns a tuple"),
    "not batch-first": (head(nn.Linear(3, 3), Function(lambda x: x.T)), r"block '1' returns shape \(3, 2\)"),
    "a scalar": (nn.Sequential(nn.Linear(3, 3), Function(lambda x: x.sum())), r"block '1' returns shape \(\)"),
    "a parameter after the sites": (
        nn.Sequential(nn.Linear(3, 3), nn.PReLU()),
        r"owns the parameter '1\.weight': it rea",
    ),
    "a parameter around the sites": (head(Around()), None),  # the next site's segment owns it
    "a parameter around the last site": (
        nn.Sequential(Around()),
        r"owns the parameter '0\.gain': it reaches the loss a",
    ),
    "a parameter of no use": (head(Unused()), r"owns the parameter '0\.spare': no site's logits depend on it"),
}


@pytest.mark.parametrize("culprit", [name for name, (_, said) in UNTRAINABLE.items() if said])
def test_what_cannot_be_trained_is_named(culprit: str) -> None:
    model, said = UNTRAINABLE[culprit]
    with pytest.raises(SiteError, match=said):
        network(model, torch.randn(5, 3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_parameter_around_a_site_belongs_to_both_segments_that_it_reaches() -> None:
    sites = network(head(Around()), torch.randn(5, 3)).sites
    assert sites[0].owned == ("0.gain", "0.site.weight", "0.site.bias")
    assert sites[1].owned == ("0.gain", "1.weight", "1.bias")


@pytest.mark.parametrize("culprit", ["batch norm", "plain dropout", "nested plain dropout"])
def test_evaluation_mode_is_a_remedy(culprit: str) -> None:
    model, _ = UNTRAINABLE[culprit]
    model.eval()
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        assert network(model, torch.randn(5, 3)).sites
    finally:
        model.train()


def test_name_patterns_are_a_remedy_for_a_module_used_twice() -> None:
    model = head(nn.Linear(3, 3), Twice(2))
    assert [site.name for site in network(model, torch.randn(5, 3), names=["0", "2"]).sites] == ["0", "2"]


def test_pathwise_needs_no_site() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    GLR(model, None, "pathwise", site_names=["none"]).estimate(x, y)
    expected = torch.autograd.grad(losses.cross_entropy(model(x), y).mean(), list(model.parameters()))
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))


# ---------------------------------------------------------------- passes


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
    """The mean of 64 estimates, each over 30 repetitions of the six examples, and its standard error."""
    model, x = networks()[name]
    x = x.repeat(30, *[1] * (x.dim() - 1))
    y = torch.arange(6).remainder(2).repeat(30)
    options = {"copies": copies, "sampler": "iid", "example_block": 180} if copies else {"seed": 1}
    net = GLR(model, Gaussian(0.6, learn="site"), estimator, executor=Inline(1), **options)
    net.prepare(x)
    drawn = []
    for net.step in range(64):
        found = net.gradients(x, y)
        assert found.grads.keys() == dict(model.named_parameters()).keys()
        grads = [*(found.grads[n] for n, _ in model.named_parameters()), *(found.scales[s] for s in found.scales)]
        drawn.append(torch.cat([g.flatten() for g in grads]))
    values = torch.stack(drawn)
    return values.mean(0), values.std(0) / len(values) ** 0.5


@pytest.mark.montecarlo
@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("estimator", ["conditional", "joint"])
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


# ---------------------------------------------------------------- types and patterns that match nothing


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sites": [nn.Conv1d, nn.Linear]}, "does not contain the type Conv1d"),
        ({"sites": [nn.Linear, nn.Embedding]}, "does not contain the type Embedding"),
        ({"sites": [nn.Linear, nn.Conv2d, nn.Conv3d]}, "does not contain the type Conv"),
        ({"site_names": ["0", "conv*"]}, r"'conv\*' matches no site"),
        ({"site_names": ["*", "1"]}, "'1' matches no site"),  # there is a module '1', but it is not a site
        ({"site_names": ["0", "2", "3"]}, "'3' matches no site"),
    ],
    ids=str,
)
def test_a_type_or_a_pattern_that_matches_nothing_is_an_error(options, said):
    net = GLR(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), **options)
    with pytest.raises(SiteError, match=said):
        net.prepare(torch.randn(2, 3))


@pytest.mark.parametrize(
    "options", [{}, {"sites": [nn.Linear]}, {"sites": [nn.Linear, nn.Conv2d]}, {"site_names": ["0", "[1-9]"]}], ids=str
)
def test_the_default_types_need_not_all_occur(options):
    net = GLR(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), **options)
    net.prepare(torch.randn(2, 3))
    assert [site.name for site in net.network.sites] == ["0", "2"]
