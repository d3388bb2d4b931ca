"""Compiled steps: the same estimate as the eager ones, the same bits everywhere, and what is refused.

Where the C++ compiler is not what is tested, the traced graphs run operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from execution.variants import VARIANTS, Residual, batch, made, same
from torch import Tensor, nn

import glr_dist
from glr_dist import inductor
from glr_dist.errors import ClusterError, ConfigError, NoGradientError, UserError
from glr_dist.estimators import compiled_step, fused_pass, fused_redraw
from glr_dist.execution.executor import Executor
from glr_dist.execution.inline import Inline
from glr_dist.execution.reproducible import reproducible
from glr_dist.glr import GLR
from glr_dist.nn import Heaviside, Staircase

# The number of nodes of an expected loss depends on the values of learned scales, which a graph cannot: that of the
# variant with flips, too. Sites with tables of levels, feedback or a column space run eagerly.
EAGER = {
    "expected head, learned scales",
    "flips",
    "levels",
    "feedback, biased",
    "feedback, expected head, learned scales",
}
REDRAWING = [
    name for name, (_, _, options) in VARIANTS.items() if options.get("estimator") not in ("joint", "pathwise")
]

BY_DEFAULT = ("layerwise", "mixed network", "shared batch norm")  # the others are long


def small(compile: str = "step", **options: object) -> GLR:
    if "model" not in options:
        torch.manual_seed(0)
        options["model"] = nn.Sequential(nn.Linear(8, 6), Heaviside(), nn.Linear(6, 3))
    return GLR(noise=0.5, copies=24, compile=compile, **options)


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=stream), torch.randint(0, 3, (n,), generator=stream)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in BY_DEFAULT)) for name in REDRAWING]
)
@pytest.mark.filterwarnings("ignore:compile. the redraws of the site '.' cannot be compiled .loop of ufunc")
@pytest.mark.slow
def test_the_estimate_is_the_eager_one_up_to_rounding(name, graphs):
    (x, y), loss = batch(name), VARIANTS[name][1]
    expected = made(name, Inline(1)).gradients(x, y, loss)
    net = made(name, Inline(1))
    net.compiles = True
    found = net.gradients(x, y, loss)
    assert bool(graphs) == (name not in EAGER)
    for kind in ("grads", "scales"):
        mine, its = getattr(found, kind), getattr(expected, kind)
        assert mine.keys() == its.keys()
        for key in its:
            assert (mine[key] - its[key]).norm() <= 1e-4 * its[key].norm(), key
    assert torch.isclose(found.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "iid", "antithetic": False, "baseline": "leave_one_out"},
        {"sampler": "iid", "baseline": "none"},
        {"copies": 20},  # a last frame with fewer rows
        {"noise": glr_dist.Logistic(0.5, learn="site")},
        {"noise": glr_dist.Gumbel(0.5), "antithetic": False, "head": "expected"},
        {"head": "derivative"},
        {"head": "derivative", "sampler": "iid", "antithetic": False, "noise": glr_dist.Gaussian(0.5, learn="unit")},
        {"redraw": "differences", "passes": 2},
        {"redraw": "auto", "head": "auto"},
        {"redraw": "auto", "head": "expected", "noise": glr_dist.Laplace(0.5)},
        {"redraw": "auto", "head": "expected", "units": Heaviside()},
        {"redraw": {"0": "flips", "*": "copies"}, "units": Staircase(3), "noise": glr_dist.Gaussian(0.5, learn="site")},
        {"redraw": {"0": "flips", "*": "copies"}, "units": Staircase(3), "block_elements": 2**8},  # within a unit
        {"share": 0.4, "noise": glr_dist.Gaussian(0.5, learn="site")},
        {"share": 0.4, "redraw": "auto", "head": "expected", "units": Heaviside()},
    ],
    ids=str,
)
def test_options_of_the_redraw(options, graphs):
    options = dict(options)
    units = options.pop("units", nn.Sigmoid())

    def net(compile: str) -> GLR:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 6), units, nn.Linear(6, 3))
        return GLR(model, **{"noise": 0.5, "copies": 24, **options}, compile=compile)

    loss = glr_dist.losses.zero_one if options.get("head") == "expected" else glr_dist.losses.cross_entropy
    found, expected = (net(compile).gradients(*data(), loss) for compile in ("step", "none"))
    assert graphs
    for kind in ("grads", "scales"):
        for key, its in getattr(expected, kind).items():
            assert (getattr(found, kind)[key] - its).norm() <= 1e-4 * its.norm(), key


def test_a_whole_block_and_a_part_of_the_same_size_have_functions_of_their_own(graphs):
    """Of 3 examples 2 are drawn, which have weights, and so are both of a last block of 2, which have none."""
    found, expected = (small(compile, share=0.6, example_block=3).gradients(*data(5)) for compile in ("step", "none"))
    assert len(graphs) == 6  # for each of the two sites, and for the shared pass
    for key, its in expected.grads.items():
        assert (found.grads[key] - its).norm() <= 1e-4 * its.norm(), key


def test_a_function_serves_all_steps_of_its_shape(graphs):
    net = small()
    for _ in range(3):
        net.estimate(*data())
    assert len(graphs) == 3  # two sites and the shared pass
    with torch.no_grad():
        for parameter in net.model.parameters():
            parameter.data = parameter.data + 0.1  # also another memory
    net.set_scale(0.7)
    net.zero_grad()
    net.estimate(*data())
    assert len(graphs) == 3
    expected = small("none")
    expected.load_state_dict(net.state_dict())
    expected.step = net.step - 1
    expected.estimate(*data())
    for mine, its in zip(net.model.parameters(), expected.model.parameters(), strict=True):
        assert (mine.grad - its.grad).norm() <= 1e-4 * its.grad.norm()
    net.estimate(*data(9))
    assert len(graphs) == 6  # another number of examples
    net.estimate(*data(), glr_dist.losses.zero_one)
    assert len(graphs) == 9  # another loss


class ByValue(nn.Module):
    """Decides by a value, which a graph cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() if x.abs().max() < 100 else x.sign()


class Outside(nn.Module):
    """Uses a tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.full((6,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.factor).tanh()


@pytest.mark.parametrize("unit", [ByValue, Outside])
def test_what_cannot_be_compiled_runs_eagerly_with_one_line_before_the_first_step(unit):
    def net(compile: str) -> GLR:
        torch.manual_seed(0)
        return small(compile, model=nn.Sequential(nn.Linear(8, 6), unit(), nn.Linear(6, 3)))

    with pytest.warns(UserWarning, match="the redraws of the site '0' cannot be compiled") as caught:
        eager = net("step")
        found = eager.gradients(*data())
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert not eager.compiles
    expected = net("none").gradients(*data())
    assert all(torch.equal(found.grads[name], its) for name, its in expected.grads.items())


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(inductor.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match=r"the C\+\+ compiler \S+ is not installed\); the step runs eagerly"):
        small().gradients(*data())


def test_a_failure_after_compiled_steps_is_an_error(graphs, monkeypatch):
    net = small()
    net.estimate(*data())

    def broken(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(inductor, "_compiled", broken)
    with pytest.raises(inductor.CompileError, match=r"site '0' cannot be compiled .*the disk is full"):
        net.estimate(*data(9))
    assert net.compiles


@pytest.mark.parametrize("wrong", [lambda right: -right, lambda right: 1.02 * right, lambda right: right * torch.nan])
def test_a_wrong_function_is_refused_before_the_first_step(wrong: Callable[[Tensor], Tensor], graphs, monkeypatch):
    right = fused_redraw._along
    monkeypatch.setattr(fused_redraw, "_along", lambda frames, weights: wrong(right(frames, weights)))
    with pytest.raises(UserError, match=r"redraws of the site '0' differ .* use execution.compile=none") as caught:
        small().gradients(*data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [lambda right: -right, lambda right: 1.02 * right, lambda right: right * torch.nan])
def test_a_wrong_shared_pass_is_refused_before_the_first_step(wrong: Callable[[Tensor], Tensor], graphs, monkeypatch):
    def changed(call: fused_pass.PassCall) -> fused_pass.FusedPass:
        right = fused_pass.fused_pass(call)
        return replace(right, run=lambda *values: tuple(map(wrong, right.run(*values))))

    monkeypatch.setattr(compiled_step, "fused_pass", changed)
    message = r"compiled shared pass differs from the eager one in 12 of 12 examples.* use execution.compile=none"
    with pytest.raises(UserError, match=message) as caught:
        small().gradients(*data())
    assert "\n" not in str(caught.value)


def test_a_shared_pass_may_differ_in_few_examples(graphs, monkeypatch):
    """Rounding can flip a threshold unit, and then the whole example differs."""

    def changed(call: fused_pass.PassCall, number: int) -> fused_pass.FusedPass:
        right = fused_pass.fused_pass(call)

        def run(*values: Tensor) -> tuple[Tensor, ...]:
            *parts, total = right.run(*values)
            return *(torch.cat([part[:number] + 1, part[number:]]) for part in parts), total

        return replace(right, run=run)

    monkeypatch.setattr(compiled_step, "fused_pass", lambda call: changed(call, 2))
    small().gradients(*data())
    monkeypatch.setattr(compiled_step, "fused_pass", lambda call: changed(call, 3))
    with pytest.raises(UserError, match="in 3 of 12 examples"):
        small().gradients(*data())


def test_logits_that_are_not_finite_are_named(graphs):
    net = small()
    net.estimate(*data())
    with torch.no_grad():
        net.model[2].weight[0] = torch.inf
    with pytest.raises(FloatingPointError, match="the logits of the site '2' are not finite at step 1"):
        net.estimate(*data())


def test_finite_logits_whose_sum_overflows_are_allowed(graphs):
    net = small()
    net.estimate(*data(), glr_dist.losses.zero_one)
    with torch.no_grad():
        net.model[2].bias[0] = 1e38
    assert net.estimate(*data(), glr_dist.losses.zero_one).isfinite()


def test_a_step_with_feedback_does_not_compile_its_shared_passes(graphs):
    net = small(
        feedback="control_variate",
        head="derivative",
        model=nn.Sequential(*several()[:1], nn.Sigmoid(), nn.Linear(6, 3)),
    )
    net.estimate(*data())
    assert len(graphs) == 1  # the last site


def test_a_shared_pass_that_cannot_be_compiled_runs_eagerly_beside_compiled_redraws(graphs):
    def net(compile: str) -> GLR:
        torch.manual_seed(0)
        return small(compile, model=nn.Sequential(ByValue(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3)))

    with pytest.warns(UserWarning, match="the shared pass cannot be compiled .*; shared passes run eagerly") as caught:
        compiled = net("step")
        found = compiled.gradients(*data())
    assert len(caught) == 1
    assert compiled.compiles
    assert len(graphs) == 2
    expected = net("none").gradients(*data())
    assert torch.equal(found.loss, expected.loss)
    for name, its in expected.grads.items():
        assert (found.grads[name] - its).norm() <= 1e-4 * its.norm(), name
    compiled.gradients(*data(9))  # not tried again
    assert len(graphs) == 4


class Joined(nn.Module):
    """A site within a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.view_as_real(x).flatten(1) if x.is_complex() else x.float()
        return self.linear(x).sigmoid()


class Before(nn.Module):
    """Gives the block of a site a tensor of another type."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return {"complex": torch.fft.rfft, "bool": lambda x: x > 0, "int": lambda x: (3 * x).long()}[self.kind](x)


@pytest.mark.parametrize(("kind", "width"), [("complex", 10), ("bool", 8), ("int", 8)])
def test_what_precedes_a_nested_site_may_be_of_any_type(kind, width, graphs):
    def net(compile: str) -> GLR:
        torch.manual_seed(0)
        return small(compile, model=nn.Sequential(Before(kind), Joined(width), nn.Linear(6, 3)))

    found, expected = (net(compile).gradients(*data()) for compile in ("step", "none"))
    assert len(graphs) == 3
    for name, its in expected.grads.items():
        assert (found.grads[name] - its).norm() <= 1e-4 * its.norm(), name


class Two(nn.Module):
    """Takes two inputs, of which one may be missing, over any number of tokens; images are bytes or floats."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor, z: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        x = x.mean(1) if x.dim() == 3 else x
        both = torch.cat([self.a(x).tanh(), self.b(x if z is None else 2 * z)], 1).sigmoid()
        return self.c(both if mask is None else both * mask)


A, B = (torch.randn(12, 8, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
MASK = (torch.arange(12) % 2).float()[:, None].repeat(1, 12)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"x": A, "z": B}, {"z": B, "x": A}),
        ({"x": A, "z": None}, {"x": A, "z": B}),
        ({"x": A, "mask": MASK}, {"x": A}),
        ({"x": (A.abs() * 40).to(torch.uint8)}, {"x": A}),
        ({"x": A}, {"x": (A.abs() * 40).to(torch.uint8)}),
        ({"x": torch.stack([A] * 5, 1)}, {"x": torch.stack([A, B] * 3, 1)}),
        ((A, B), (A,)),
    ],
    ids=["order", "none", "mask", "bytes first", "bytes second", "length", "tuple"],
)
def test_another_form_of_the_batch_is_compiled_anew(first, second, graphs):
    def net(compile: str) -> GLR:
        torch.manual_seed(0)
        return small(compile, model=Two())

    y = data()[1]
    compiled = net("step")
    compiled.gradients(first, y)
    number = len(graphs)
    for x in (second, first):
        found, expected = compiled.gradients(x, y), net("none").gradients(x, y)
        for name, its in expected.grads.items():
            assert (found.grads[name] - its).norm() <= 1e-4 * its.norm(), name
    assert len(graphs) == 2 * number


def test_other_targets_are_compiled_anew(graphs):
    compiled, (x, y) = small(), data()
    compiled.gradients(x, y, glr_dist.losses.zero_one)
    found = compiled.gradients(x, y.int(), glr_dist.losses.zero_one)
    expected = small("none").gradients(x, y, glr_dist.losses.zero_one)
    for name, its in expected.grads.items():
        assert (found.grads[name] - its).norm() <= 1e-4 * its.norm(), name


def test_a_network_of_another_type_is_compiled_anew(graphs):
    net, (x, y) = small(), data()
    net.gradients(x, y)
    net.double()
    found = net.gradients(x.double(), y)
    assert len(graphs) == 6
    assert found.grads["0.weight"].dtype == torch.float64


def test_a_fitted_network_is_not_refused(graphs):
    """A loss of a millionth is the difference of large logits, and rounds as they do."""
    model = nn.Sequential(nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3, 8) * 40)
        model[0].bias.zero_()
    x = torch.eye(3, 8).repeat(4, 1) + 0.01
    net = small(model=model, head="derivative")
    assert 0 <= net.estimate(x, torch.arange(12) % 3).item() < 1e-3


@pytest.mark.slow
def test_a_loss_that_is_made_anew_in_every_step_is_refused(graphs):
    net = small()
    with pytest.raises(UserError, match="define it once, outside the loop"):
        for _ in range(20):
            net.estimate(*data(), lambda outputs, y: glr_dist.losses.cross_entropy(outputs, y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "joint"}, "'step' has no effect with 'joint'"),
        ({"copies": "auto", "budget": 20}, "needs fixed estimator.copies"),
        ({"compile": "auto"}, "'auto' is not allowed: 'none' or 'step'"),
    ],
)
def test_what_is_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        GLR(nn.Linear(8, 3), **{"compile": "step", **options})


def several() -> nn.Module:
    """Keyed dropout, a nested site, and sites in front of a threshold and of the loss."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), Heaviside(), glr_dist.nn.Dropout(0.25), Residual(6), nn.Linear(6, 3))


def stepped(model: nn.Module, executor: Executor, compile: str = "step") -> dict[str, Tensor]:
    """Returns the parameters after three steps of two example blocks each."""
    net = small(compile, model=model, executor=executor, example_block=6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net.estimate(*data())
        optimizer.step()
    return net.state_dict()


@pytest.mark.long
def test_compiled_code_gives_the_same_bits_on_one_and_two_threads(compiler):
    expected, eager = stepped(several(), Inline(1)), stepped(several(), Inline(1), "none")
    assert same(stepped(several(), Inline(2)), expected)
    assert not same(eager, expected)  # it is another function, and
    assert all(torch.allclose(expected[name], its, atol=1e-3) for name, its in eager.items())  # the same estimate


@pytest.mark.long
@pytest.mark.ray
def test_compiled_code_gives_the_same_bits_on_actors(local_ray, compiler):
    from glr_dist.execution.layers import Layers

    expected = stepped(several(), Inline())
    for number in (1, 2):
        with Layers(number, cpus_per_actor=0.5, threads=1, hang_timeout=300) as layers:
            assert same(stepped(several(), layers), expected), f"{number} actors"


@pytest.mark.long
def test_other_code_than_that_of_the_driver_is_refused(compiler):
    from glr_dist.estimators.compiled_step import CompiledStep

    net = small()
    net.gradients(*data())
    with reproducible(), torch.no_grad(), net.network.hooked():
        step = net.bind(*data())
        items, tapes = list(net.estimator.items(step, 0)), {0: net.estimator.tape(step, 0, 0)}
        copy = CompiledStep()
        copy.digests = net.compiled_code
        copy.prepare(net.estimator, step, items, tapes)  # the same code
        copy = CompiledStep()
        copy.digests = dict.fromkeys(net.compiled_code, "other")
        with pytest.raises(ClusterError, match="compiles the redraws of the site '0' into other code"):
            copy.prepare(net.estimator, step, items, tapes)


def test_a_loss_without_a_derivative_is_refused_before_it_is_compiled(graphs):
    net = small(head="derivative", model=nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3)))
    with pytest.raises(NoGradientError, match="the loss has no derivative at the logits of '2'"):
        net.estimate(*data(), lambda z, y: glr_dist.losses.cross_entropy(z, y).round())


@pytest.mark.parametrize("way", ["flips", "differences"])
def test_moves_in_many_blocks_run_eagerly(way, graphs):
    def net(compile: str) -> GLR:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 20), Heaviside(), nn.Linear(20, 3))
        return small(compile, model=model, redraw={"0": way, "*": "copies"}, block_elements=1)

    found, expected = (net(compile).gradients(*data()).grads for compile in ("step", "none"))
    assert len(graphs) == 2  # the last site and the shared pass
    assert torch.allclose(found["0.weight"], expected["0.weight"], rtol=1e-4, atol=1e-7)


@pytest.mark.long
def test_the_code_does_not_depend_on_the_memory_of_its_arguments(compiler):
    """An actor receives all its tensors in one buffer."""
    whole = torch.arange(12.0)
    apart = inductor.built(lambda a, b: ((a + 1) * b,), [whole[:6].clone(), whole[6:].clone()])
    assert inductor.built(lambda a, b: ((a + 1) * b,), [whole[:6], whole[6:]]).digest == apart.digest


@pytest.mark.long
@pytest.mark.parametrize("loss", [glr_dist.losses.zero_one, glr_dist.losses.cross_entropy])
def test_compiled_code_refuses_a_class_out_of_range(compiler, loss):
    net = small(head="auto", model=nn.Sequential(nn.Linear(8, 6), Heaviside(), nn.Linear(6, 3)))
    x, y = data()
    net.estimate(x, y, loss)
    for wrong in (3, -1):
        with pytest.raises(RuntimeError, match="out of bounds"):
            net.estimate(x, torch.cat([y[:-1], torch.tensor([wrong])]), loss)


@pytest.mark.process
def test_the_compiler_keeps_the_layout_that_contiguous_gives(monkeypatch):
    """The expected 0-1 loss is a product over the classes, several examples at a time, if the classes come first."""
    graphs, compiled = [], inductor._compiled
    monkeypatch.setattr(inductor, "_compiled", lambda graph, *given: graphs.append(graph) or compiled(graph, *given))
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    function = inductor.built(lambda x: (x.T.contiguous().erf().prod(0),), [x])
    (graph,) = graphs
    (kept,) = [node for node in graph.graph.nodes if "force_stride_order" in str(node.target)]
    assert kept.args[1] == [64, 1]
    torch.testing.assert_close(function.run(x)[0], x.erf().prod(1))
