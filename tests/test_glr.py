"""The public API: a module, a noise, an estimator; `estimate` fills `.grad` as `backward` does."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import glr_dist
from glr_dist.checks import all_finite
from glr_dist.errors import ConfigError, SiteError, UserError
from glr_dist.execution.inline import Inline
from glr_dist.losses import cross_entropy, zero_one
from glr_dist.nn import Dropout, Heaviside, Sign, mlp


def weights(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def threshold_net(seed: int = 0) -> nn.Sequential:
    return mlp(4, [6, 5], 3, "threshold", init="torch", generator=weights(seed))


def sigmoid_net(seed: int = 0) -> nn.Sequential:
    return mlp(4, [6, 5], 3, "sigmoid", init="torch", generator=weights(seed))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    stream = weights(1)
    return torch.randn(10, 4, generator=stream), torch.randint(0, 3, (10,), generator=stream)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- the example of the README


@pytest.mark.slow
def test_a_threshold_network_learns_the_zero_one_loss_with_a_torch_optimizer():
    # Two classes by the sign of x0 + x1, a margin apart. Neither the network nor the loss has a derivative.
    stream, init = weights(), weights(1)
    x = torch.rand(200, 2, generator=stream) * 2 - 1
    x = x[x.sum(1).abs() > 0.2]
    y = (x.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(2, 12), Heaviside(), nn.Linear(12, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.7, 0.7, generator=init)
    before = (model(x).argmax(1) == y).float().mean().item()
    # Of 300 seeds two gave a class up at once, among them 0.
    net = glr_dist.GLR(model, noise=glr_dist.Gaussian(0.3), estimator="conditional", copies=64, seed=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        losses.append(net.estimate(x, y, loss=glr_dist.losses.zero_one).item())
        optimizer.step()
    after = (net(x).argmax(1) == y).float().mean().item()
    assert after >= 0.95
    assert after > before
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# ---------------------------------------------------------------- as backward does


def test_grad_accumulates_as_backward_does(batch):
    net = glr_dist.GLR(threshold_net(), copies=8)
    first = net.gradients(*batch).grads
    net.estimate(*batch)
    assert same({name: p.grad for name, p in net.model.named_parameters()}, first)
    second = net.gradients(*batch).grads  # of the next step: other noise
    assert not same(first, second)
    net.estimate(*batch)
    total = {name: first[name] + second[name] for name in first}
    assert same({name: p.grad for name, p in net.model.named_parameters()}, total)


def test_gradients_touch_neither_grad_nor_the_step(batch):
    net = glr_dist.GLR(threshold_net(), copies=8)
    first = net.gradients(*batch)
    assert same(net.gradients(*batch).grads, first.grads)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.step == 0
    net.estimate(*batch)
    assert net.step == 1


def test_two_nets_do_not_share_their_gradients(batch):
    # `.grad` must not alias what `gradients` keeps: an optimizer changes it in place.
    net = glr_dist.GLR(threshold_net(), copies=8)
    net.estimate(*batch)
    kept = {name: p.grad.clone() for name, p in net.model.named_parameters()}
    net.model[1].weight.grad.zero_()
    net.step = 0
    net.zero_grad()
    net.estimate(*batch)
    assert same({name: p.grad for name, p in net.model.named_parameters()}, kept)


def test_the_mean_loss_of_a_network_of_half_precision_is_summed_in_single_precision():
    torch.manual_seed(0)
    net = glr_dist.GLR(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).bfloat16(), example_block=2)
    loss = net.estimate(torch.randn(400, 8).bfloat16(), torch.arange(400) % 3)
    assert loss.dtype == torch.float32


def test_the_loss_that_estimate_returns_is_a_plain_number(batch):
    loss = glr_dist.GLR(threshold_net(), copies=8).estimate(*batch, zero_one)
    assert loss.shape == ()
    assert not loss.requires_grad
    assert (loss * 10).item() == pytest.approx(round(loss.item() * 10))  # ten examples, one pass: tenths


def test_estimate_leaves_the_parameters_and_the_global_generator_alone(batch):
    model = threshold_net()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    glr_dist.GLR(model, copies=8).estimate(*batch)
    assert torch.equal(state, torch.get_rng_state())
    assert same(model.state_dict(), before)


def test_estimate_leaves_no_hook_and_gives_back_the_number_of_threads(batch):
    model = nn.Sequential(nn.Linear(4, 5), Residual(5), nn.Linear(5, 3))
    threads = torch.get_num_threads()
    glr_dist.GLR(model, copies=8).estimate(*batch)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_calling_the_net_runs_the_model_without_noise(batch):
    net = glr_dist.GLR(sigmoid_net(), copies=8)
    assert torch.equal(net(batch[0]), net.model(batch[0]))
    net.estimate(*batch)
    assert torch.equal(net(batch[0]), net.model(batch[0]))


@pytest.mark.parametrize("estimator", ["conditional", "layerwise", "joint", "pathwise"])
def test_frozen_parameters_get_no_grad_and_the_others_the_same_as_before(batch, estimator):
    model = sigmoid_net()
    options = {} if estimator == "pathwise" else {"copies": 8}
    free = glr_dist.GLR(model, estimator=estimator, **options).gradients(*batch).grads
    model[3].weight.requires_grad_(False)
    net = glr_dist.GLR(model, estimator=estimator, **options)
    net.estimate(*batch)
    assert model[3].weight.grad is None
    grads = {name: p.grad for name, p in model.named_parameters() if name != "3.weight"}
    assert grads.keys() == free.keys() - {"3.weight"}
    for name, grad in grads.items():
        torch.testing.assert_close(grad, free[name], rtol=1e-4, atol=1e-6)


def test_a_wholly_frozen_site_gets_no_estimate_of_its_own(batch):
    model = threshold_net()
    model[1].requires_grad_(False)
    net = glr_dist.GLR(model, copies=8)
    net.estimate(*batch)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "3.weight", "3.bias", "5.weight", "5.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_the_type_and_shape_of_their_parameters(batch, dtype):
    model = threshold_net().to(dtype)
    net = glr_dist.GLR(model, noise=glr_dist.Laplace(0.5, learn="unit"), copies=8)
    net.prepare(batch[0].to(dtype))
    net.estimate(batch[0].to(dtype), batch[1])
    for parameter in net.parameters():
        assert parameter.grad.dtype == dtype
        assert parameter.grad.shape == parameter.shape


# ---------------------------------------------------------------- errors


@pytest.fixture
def net() -> glr_dist.GLR:
    return glr_dist.GLR(threshold_net(), copies=8)


def test_an_empty_batch_is_refused(net):
    with pytest.raises(ValueError, match="one length >= 1, got 0 and 0"):
        net.estimate(torch.empty(0, 4), torch.empty(0, dtype=torch.long))


def test_inputs_and_targets_of_two_lengths_are_refused(net, batch):
    with pytest.raises(ValueError, match="got 10 and 9"):
        net.estimate(batch[0], batch[1][:9])


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (nn.CrossEntropyLoss(), r"one value per example, shape \(3,\) for 3 examples, got shape \(\)"),
        (lambda outputs, targets: outputs, r"got shape \(\d+, 3\)"),
        (lambda outputs, targets: 1.0, "got float"),
    ],
    ids=["a mean", "a matrix", "no tensor"],
)
def test_a_loss_that_is_not_one_value_per_example_is_refused(net, batch, loss, said):
    with pytest.raises(ValueError, match=said):
        net.estimate(*batch, loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(net, batch, value):
    batch[0][3, 1] = value
    with pytest.raises(FloatingPointError, match="inputs are not finite"):
        net.estimate(*batch)


def test_weights_that_are_not_finite_are_named_by_their_site(net, batch):
    with torch.no_grad():
        net.model[3].weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits of the site '3' are not finite at step 0"):
        net.estimate(*batch)


def not_finite(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.full((len(outputs),), float("nan"))


def sometimes_not_finite(outputs: Tensor, targets: Tensor) -> Tensor:
    """Finite in the shared pass of ten examples, NaN in every larger batch: in the redraws."""
    return cross_entropy(outputs, targets) + (0.0 if len(outputs) == 10 else float("nan"))


@pytest.mark.parametrize("loss", [not_finite, sometimes_not_finite])
@pytest.mark.parametrize("estimator", ["conditional", "layerwise", "joint"])
def test_a_loss_that_is_not_finite_is_an_error_and_leaves_grad_alone(batch, estimator, loss):
    net = glr_dist.GLR(threshold_net(), estimator=estimator, copies=8)
    with pytest.raises(FloatingPointError, match="not finite"):
        net.estimate(*batch, loss)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.step == 0


def test_an_unknown_option_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"^copys: is not an option of GLR; did you mean 'copies'\?$"):
        glr_dist.GLR(threshold_net(), copys=8)


def test_an_unknown_estimator_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"estimator\.name: 'conditonal'.*did you mean 'conditional'\?"):
        glr_dist.GLR(threshold_net(), estimator="conditonal")


def test_a_biased_combination_is_refused():
    with pytest.raises(ConfigError, match="odd"):
        glr_dist.GLR(threshold_net(), copies=7)
    with pytest.raises(ConfigError, match="needs noise"):
        glr_dist.GLR(threshold_net(), noise=None)


@pytest.mark.parametrize("noise", [{"scale": 0.0}, {"scale": -1.0}, {"scale": float("nan")}, {"floor": 0.0}], ids=str)
def test_a_scale_that_is_not_positive_is_refused(noise):
    with pytest.raises(ValueError, match="not allowed"):
        glr_dist.Gaussian(**noise)


def test_pathwise_on_a_threshold_network_says_what_is_wrong(batch):
    with pytest.raises(ValueError, match=r"pathwise: autograd gives no gradient to '1\.weight'.*another estimator"):
        glr_dist.GLR(threshold_net(), estimator="pathwise").estimate(*batch)
    with pytest.raises(ValueError, match="pathwise: the loss has no gradient"):
        glr_dist.GLR(sigmoid_net(), estimator="pathwise").estimate(*batch, zero_one)


def test_a_head_without_a_derivative_says_what_is_wrong(batch):
    with pytest.raises(ValueError, match="use 'sampled'"):
        glr_dist.GLR(threshold_net(), copies=8, head="derivative").estimate(*batch, zero_one)
    model = nn.Sequential(nn.Linear(4, 3), Heaviside())
    with pytest.raises(ValueError, match="use 'sampled'"):
        glr_dist.GLR(model, copies=8, head="derivative").estimate(*batch)


def test_plain_dropout_and_batch_norm_are_named(batch):
    with pytest.raises(SiteError, match=r"'1' \(Dropout\) draws from torch's global generator"):
        glr_dist.GLR(nn.Sequential(nn.Linear(4, 3), nn.Dropout()), copies=8).estimate(*batch)
    with pytest.raises(SiteError, match="'1' is a BatchNorm1d in training mode"):
        glr_dist.GLR(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), copies=8).estimate(*batch)


# ---------------------------------------------------------------- modules of one's own


class Residual(nn.Module):
    """A block with a site inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.gt(self.inner(x), 0)


class Plain(nn.Module):
    """A network with nothing but a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.sign = Sign()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.sign(self.first(x)))


class Chained(Plain):
    """The same network, which gives its chain."""

    def chain(self) -> list[nn.Module]:
        return [self.first, self.sign, self.second]


@pytest.mark.parametrize("estimator", ["conditional", "layerwise", "joint"])
def test_a_module_with_a_chain_and_one_with_a_plain_forward_get_the_same_gradients(batch, estimator):
    plain, chained = Plain(), Chained()
    chained.load_state_dict(plain.state_dict())
    grads = [
        glr_dist.GLR(model, noise=glr_dist.Gaussian(0.5), estimator=estimator, copies=8).gradients(*batch).grads
        for model in (plain, chained)
    ]
    assert grads[0].keys() == dict(plain.named_parameters()).keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])
    assert all(grad.any() for grad in grads[0].values())


def test_a_chain_replays_less_than_a_plain_forward(batch):
    def passes(model: nn.Module) -> float:
        net = glr_dist.GLR(model, copies=8)
        net.prepare(batch[0])
        return net.cost(*batch)[1]

    assert passes(Chained()) < passes(Plain())


def test_a_chain_that_gives_a_foreign_module_is_refused():
    class Foreign(Plain):
        def chain(self) -> list[nn.Module]:
            return [nn.Linear(4, 3)]

    with pytest.raises(SiteError, match=r"Foreign\.chain\(\): contains a Linear that is not a submodule"):
        glr_dist.GLR(Foreign(), copies=8)


def test_a_site_inside_a_block_is_trained(batch):
    model = nn.Sequential(nn.Linear(4, 5), Residual(5), nn.Linear(5, 3))
    net = glr_dist.GLR(model, noise=glr_dist.Gaussian(0.5), copies=8)
    net.estimate(*batch)
    assert [site.name for site in net.network.sites] == ["0", "1.inner", "2"]
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_a_convolution_is_trained_on_images():
    stream = weights()
    x, y = torch.rand(6, 1, 6, 6, generator=stream), torch.arange(6) % 3
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), Heaviside(), nn.Flatten(), nn.Linear(8, 3))
    net = glr_dist.GLR(model, copies=16)
    net.estimate(x, y)
    assert {name: p.grad.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert all(parameter.grad.any() for parameter in model.parameters())


# ---------------------------------------------------------------- options by site


def test_a_number_and_a_mapping_of_that_number_give_the_same_bits(batch):
    one = glr_dist.GLR(threshold_net(), copies=8, passes=2).gradients(*batch).grads
    mapped = glr_dist.GLR(threshold_net(), copies={"*": 8}, passes={"1": 2, "*": 2}).gradients(*batch).grads
    assert same(one, mapped)


def test_copies_and_passes_by_pattern_change_the_sites_that_match_alone(batch):
    one = glr_dist.GLR(threshold_net(), copies=8).gradients(*batch).grads
    more = glr_dist.GLR(threshold_net(), copies={"[13]": 8, "5": 20}).gradients(*batch).grads
    assert {name for name in one if torch.equal(one[name], more[name])} == {"1.weight", "1.bias", "3.weight", "3.bias"}
    passes = glr_dist.GLR(threshold_net(), copies=8, passes={"1": 3, "*": 1}).gradients(*batch).grads
    assert {name for name in one if torch.equal(one[name], passes[name])} == {
        "3.weight", "3.bias", "5.weight", "5.bias",
    }  # fmt: skip


def test_the_first_pattern_that_matches_counts(batch):
    net = glr_dist.GLR(threshold_net(), noise=glr_dist.Gaussian({"3": 0.25, "*": 2.0, "5": 9.0}), copies=8)
    net.prepare(batch[0])
    assert {name: round(scale.item(), 6) for name, scale in net.scales().items()} == {"1": 2.0, "3": 0.25, "5": 2.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"copies": {"conv*": 8, "*": 8}}, r"estimator\.copies: the pattern 'conv\*' matches no site; .* 1, 3, 5"),
        ({"copies": {"1": 8}}, r"estimator\.copies: no pattern of 1 matches the site '3'"),
        ({"passes": {"[13]": 2}}, r"estimator\.passes: no pattern of \[13\] matches the site '5'"),
        ({"noise": glr_dist.Gaussian({"9": 1.0})}, r"noise\.scale: the pattern '9' matches no site"),
        ({"site_names": ["9"]}, "no module matches the site types and name patterns"),
        ({"site_names": ["5"]}, r"no site owns the parameter '1\.weight'"),
    ],
    ids=str,
)
def test_patterns_that_do_not_fit_the_sites_are_named(batch, options, said):
    with pytest.raises(SiteError, match=said):
        glr_dist.GLR(threshold_net(), **{"copies": 8, **options}).estimate(*batch)


def test_cost_counts_copies_and_forward_passes(batch):
    net = glr_dist.GLR(threshold_net(), copies={"1": 10, "*": 4}, passes=3)
    net.prepare(batch[0])
    copies, passes = net.cost(*batch)
    assert copies == 3 * (10 + 4 + 4)
    flops = {"1": 24, "3": 30, "5": 15}  # multiplications of 4-6-5-3
    assert passes == pytest.approx(3 * (1 + (10 * (30 + 15) + 4 * 15) / sum(flops.values())))


# ---------------------------------------------------------------- learned scales


@pytest.mark.parametrize("learn", ["site", "unit"])
def test_learned_scales_change_and_stay_above_the_floor(batch, learn):
    floor = 0.2
    net = glr_dist.GLR(sigmoid_net(), noise=glr_dist.Gaussian(0.5, learn=learn, floor=floor), copies=16)
    net.prepare(batch[0])
    optimizer = torch.optim.SGD(net.parameters(), lr=20.0)  # so large a step that the floor is reached
    before = net.scales()
    reached = changed = False
    for _ in range(6):
        optimizer.zero_grad()
        net.estimate(*batch)
        for parameter in net.log_scales.values():
            assert parameter.grad.shape == parameter.shape
        optimizer.step()
        with torch.no_grad():  # only the scales move: the weights would leave the range of floats
            for name, parameter in net.model.named_parameters():
                parameter.copy_(dict(sigmoid_net().named_parameters())[name])
        scales = net.scales()
        changed |= any(not torch.equal(scales[name], before[name]) for name in scales)
        reached |= any((scale <= floor * 1.0001).any().item() for scale in scales.values())
        assert all((scale >= floor * 0.9999).all() for scale in scales.values())
    assert changed
    assert reached


def test_scales_have_one_value_or_one_for_each_unit(batch):
    for learn, shapes in (("none", [(), (), ()]), ("site", [(), (), ()]), ("unit", [(6,), (5,), (3,)])):
        net = glr_dist.GLR(sigmoid_net(), noise=glr_dist.Gaussian(0.5, learn=learn), copies=8)
        net.prepare(batch[0])
        assert [tuple(scale.shape) for scale in net.scales().values()] == shapes


def test_a_scale_that_is_set_is_that_of_a_net_made_with_it(batch):
    scale = {"1": 0.3, "*": 0.7}
    made = glr_dist.GLR(sigmoid_net(), noise=glr_dist.Gaussian(scale), copies=8).gradients(*batch).grads
    net = glr_dist.GLR(sigmoid_net(), copies=8)
    before = net.gradients(*batch).grads
    net.set_scale(scale)
    assert same(net.gradients(*batch).grads, made)
    net.set_scale(1.0)
    assert same(net.gradients(*batch).grads, before)
    early = glr_dist.GLR(sigmoid_net(), copies=8)
    early.set_scale(scale)  # before the sites are known
    assert same(early.gradients(*batch).grads, made)


def test_a_scale_that_cannot_be_set_is_refused_and_changes_nothing(batch):
    net = glr_dist.GLR(sigmoid_net(), copies=8)
    before = net.gradients(*batch).grads
    for scale, error in ((-1.0, ConfigError), ({"9": 1.0}, SiteError), ({"1": 1.0}, SiteError)):
        with pytest.raises(error, match="noise scale"):
            net.set_scale(scale)
    assert same(net.gradients(*batch).grads, before)
    with pytest.raises(UserError, match="learned"):
        glr_dist.GLR(sigmoid_net(), noise=glr_dist.Gaussian(learn="site"), copies=8).set_scale(1.0)
    with pytest.raises(UserError, match="no noise"):
        glr_dist.GLR(sigmoid_net(), noise=None, estimator="pathwise").set_scale(1.0)


def test_fixed_scales_get_no_grad_and_learned_ones_do(batch):
    fixed = glr_dist.GLR(sigmoid_net(), copies=8)
    fixed.estimate(*batch)
    assert all(not p.requires_grad and p.grad is None for p in fixed.log_scales.values())
    learned = glr_dist.GLR(sigmoid_net(), noise=glr_dist.Gaussian(1.0, learn="site"), copies=8)
    learned.estimate(*batch)
    assert all(p.requires_grad and p.grad is not None for p in learned.log_scales.values())


def test_the_state_holds_the_scales(batch):
    net = glr_dist.GLR(sigmoid_net(), noise=glr_dist.Gaussian(0.5, learn="unit"), copies=8)
    net.prepare(batch[0])
    with torch.no_grad():
        for parameter in net.log_scales.values():
            parameter.add_(0.25)
    twin = glr_dist.GLR(sigmoid_net(3), noise=glr_dist.Gaussian(0.5, learn="unit"), copies=8)
    twin.prepare(batch[0])
    twin.load_state_dict(net.state_dict())
    assert same(twin.gradients(*batch).scales, net.gradients(*batch).scales)


# ---------------------------------------------------------------- the same bits

VARIANTS = {
    "conditional": {},
    "passes": {"passes": 3},
    "iid": {"sampler": "iid", "noise": glr_dist.Logistic(0.5)},
    "sobol": {"sampler": "sobol"},
    "no pairs": {"antithetic": False, "baseline": "none"},
    "leave one out": {"sampler": "iid", "baseline": "leave_one_out"},
    "layerwise": {"estimator": "layerwise"},
    "joint": {"estimator": "joint"},
    "a share of the examples": {"share": 0.6, "passes": 2},
    "derivative head": {"head": "derivative"},
    "learned": {"noise": glr_dist.Gaussian(0.5, learn="unit")},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_gradients_are_the_same_bits_for_any_number_of_threads(options):
    # Several work items: example blocks of 4, and few directions a block. Wide enough that torch's own threads start.
    stream = weights()
    x, y = torch.randn(10, 40, generator=stream), torch.randint(0, 3, (10,), generator=stream)
    model = nn.Sequential(mlp(40, [300, 30], 3, "sigmoid", init="torch", generator=stream), Dropout(0.25))
    arguments = {"copies": 16, "example_block": 4, "block_elements": 2**13, **options}
    torch_threads = torch.get_num_threads()
    found = []
    try:
        for threads, outside in ((1, 1), (1, 4), (2, 1), (3, 3)):
            torch.set_num_threads(outside)
            net = glr_dist.GLR(model, executor=Inline(threads), **arguments)
            found.append(net.gradients(x, y))
    finally:
        torch.set_num_threads(torch_threads)
    for other in found[1:]:
        assert same(other.grads, found[0].grads)
        assert same(other.scales, found[0].scales)
        assert torch.equal(other.loss, found[0].loss)


@pytest.mark.parametrize("estimator", ["conditional", "layerwise"])
def test_the_loss_does_not_depend_on_how_the_redraws_are_cut(batch, estimator):
    losses = [
        glr_dist.GLR(threshold_net(), estimator=estimator, copies=16, passes=1, block_elements=elements)
        .gradients(*batch)
        .loss
        for elements in (2**9, 2**13, 2**19)
    ]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


def test_seed_step_and_nothing_else_name_the_noise(batch):
    def grads(seed: int, step: int) -> dict[str, Tensor]:
        net = glr_dist.GLR(threshold_net(), copies=8, seed=seed)
        net.step = step
        return net.gradients(*batch).grads

    torch.manual_seed(0)
    first = grads(0, 0)
    torch.manual_seed(1)
    assert same(grads(0, 0), first)
    for seed, step in ((1, 0), (0, 1), (2**32, 0), (0, 2**32)):
        assert not same(grads(seed, step), first)


def test_a_block_of_examples_does_not_feel_the_other_blocks(batch):
    # With blocks of five examples, what the first five add to the gradient is the same whoever the others are.
    x, y = batch
    net = glr_dist.GLR(threshold_net(), copies=8, example_block=5)

    def grads(x: Tensor) -> dict[str, Tensor]:
        return net.gradients(x, y[: len(x)]).grads

    first, other, last = x[:5], x[:5].flip(0), x[5:]
    alone = [grads(part) for part in (first, other)]
    together = [grads(torch.cat([part, last])) for part in (first, other)]
    for name in alone[0]:
        change = (alone[0][name] - alone[1][name]) / 2  # a mean over ten instead of five
        torch.testing.assert_close(together[0][name] - together[1][name], change)
    assert any((alone[0][name] != alone[1][name]).any() for name in alone[0])


def test_a_copy_of_the_net_gives_the_same_gradients(batch):
    net = glr_dist.GLR(threshold_net(), copies=8, executor=Inline(2))
    net.estimate(*batch)
    twin = copy.deepcopy(net)
    assert same(twin.gradients(*batch).grads, net.gradients(*batch).grads)
    with torch.no_grad():
        twin.model[1].weight.zero_()
    assert net.model[1].weight.any()


class Named(nn.Module):
    """Sites with names that a dictionary has methods for; one is nested and called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(4, 5)
        self.values = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.values(input=self.keys(input=x).tanh())


@pytest.mark.parametrize("learn", ["none", "unit"])
def test_a_site_may_have_any_name_and_be_called_by_keyword(batch, learn):
    net = glr_dist.GLR(Named(), glr_dist.Gaussian(0.5, learn=learn), copies=8)
    net.estimate(*batch)
    assert net.scales().keys() == {"keys", "values"}
    assert all(parameter.grad is not None for parameter in net.model.parameters())


def test_an_input_that_requires_a_gradient_makes_no_difference(batch):
    x, y = batch
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))  # the segment runs again from x
    found = [glr_dist.GLR(model, copies=8).gradients(x.requires_grad_(flag), y).grads for flag in (False, True)]
    assert same(*found)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_numbers_that_are_not_finite_are_found(dtype, value):
    numbers = torch.full((7, 3), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(numbers)
    assert all_finite(numbers[:0])
    numbers[3, 1] = value
    assert not all_finite(numbers)


def test_complex_numbers_and_counts_are_finite():
    numbers = torch.full((3,), 1 + 2j)
    assert all_finite(numbers)
    numbers[1] = complex(0, torch.inf)
    assert not all_finite(numbers)
    assert all_finite(torch.arange(3))


def test_work_items_are_larger_on_a_gpu_unless_their_size_is_given():
    model, x, y = nn.Linear(4, 3), torch.randn(4, 4), torch.arange(4) % 3
    for chosen, cpu, gpu in ((None, 2**19, 2**24), ("auto", 2**19, 2**24), (1000, 1000, 1000)):
        step = glr_dist.GLR(model, 0.5, block_elements=chosen).bind(x, y)
        assert step.block_elements == cpu
        assert replace_device(step, "cuda").block_elements == gpu


def replace_device(step, device):
    """Returns a step that says it is on another device."""
    elsewhere = replace(step)
    elsewhere.__dict__["device"] = torch.device(device)
    return elsewhere
