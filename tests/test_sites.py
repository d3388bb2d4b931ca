"""Sites and the segments before them: which parameters a site owns, and networks that cannot be trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_chain import Whole
from torch import Tensor, nn

from glr_dist import GLR, losses
from glr_dist.network import Network
from glr_dist.noise import Gaussian
from glr_dist.sites import SiteError, by_site


class Residual(nn.Module):
    """A nested site, and its input around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def network(model: nn.Module, x: Tensor, **options: object) -> Network:
    found = Network(model, **options)  # type: ignore[arg-type]
    found.prepare(x, keep_inputs=lambda _: True)
    return found


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


def test_a_pattern_means_all_calls_of_a_module_and_a_name_one() -> None:
    names = ["cell[0]", "cell[1]", "cell[10]", "cells.0", "head"]
    assert by_site({"cell[1]": 1, "cell": 2, "cells*": 3, "*": 4}, names, "option") == dict(
        zip(names, [2, 1, 2, 3, 4], strict=True)
    )


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
    "a site run never": (head(Twice(0)), r"site '0\.shared' ran 0 times in one pass"),
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


@pytest.mark.parametrize("names", [["0", "2"], ["*", "!1.shared"], ["!1.*"], ["[02]", "1.*", "!*shared"]], ids=str)
def test_name_patterns_choose_and_exclude(names: list[str]) -> None:
    model = head(nn.Linear(3, 3), Twice(2))
    assert [site.name for site in network(model, torch.randn(5, 3), names=names).sites] == ["0", "2"]


def test_each_call_of_a_module_is_a_site() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(nn.Linear(3, 3), Twice(3), shared, nn.Tanh(), shared)
    sites = network(model, torch.randn(5, 3)).sites
    names = ["0", "1.shared[0]", "1.shared[1]", "1.shared[2]", "2[0]", "2[1]"]
    assert [(site.index, site.name, site.block) for site in sites] == list(
        zip(range(6), names, [0, 1, 1, 1, 2, 4], strict=True)
    )
    assert [site.top for site in sites] == [True, False, False, False, True, True]
    assert sites[2].owned == ("1.shared.weight", "1.shared.bias")
    assert sites[5].owned == ("2.weight", "2.bias")


def test_a_block_that_also_runs_inside_another_block_is_found_in_both() -> None:
    shared = nn.Linear(3, 3)
    sites = network(nn.Sequential(shared, Residual(shared), nn.Linear(3, 2)), torch.randn(5, 3)).sites
    assert [(site.name, site.block, site.top) for site in sites] == [
        ("0[0]", 0, False),
        ("0[1]", 1, False),
        ("2", 2, True),
    ]


def test_pathwise_needs_no_site() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    GLR(model, None, "pathwise", site_names=["none"]).estimate(x, y)
    expected = torch.autograd.grad(losses.cross_entropy(model(x), y).mean(), list(model.parameters()))
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))


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
