"""The networks of the registry: shapes, arguments, and gradients that are right wherever a derivative exists or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from slopes import Z, slopes
from torch import Tensor, nn

from glr_dist import GLR
from glr_dist.build import network_of
from glr_dist.config import Config, ZooModel, build, dump, load_config
from glr_dist.data import load
from glr_dist.errors import ConfigError
from glr_dist.execution.inline import Inline
from glr_dist.nn.codebook import Distances, Nearest
from glr_dist.nn.convolutional import HalvingPool2d
from glr_dist.nn.experts import TopOne
from glr_dist.nn.quantised import Quantise
from glr_dist.nn.spiking import LIF, Constant
from glr_dist.nn.vit import Patches
from glr_dist.registry import ACTIVATIONS, MODELS, ZOO

# name: shape of an example, small arguments, True if the network has jumps
SMALL: dict[str, tuple[tuple[int, ...], dict[str, Any], bool]] = {
    "lenet5": ((1, 12, 12), {}, False),
    "vgg8": ((1, 8, 8), {"width": 2}, False),
    "resnet8": ((1, 5, 5), {"width": 2}, False),
    "vit": ((1, 4, 4), {"patch": 2, "width": 4, "depth": 1, "heads": 2}, False),
    "gru": ((1, 3, 2), {"units": 3}, False),
    "spiking_mlp": ((3,), {"hidden": [4, 3], "steps": 3}, True),
    "spiking_cnn": ((1, 4, 4), {"channels": [2, 2], "steps": 2}, True),
    "quantised_mlp": ((3,), {"hidden": [4, 3], "bits": 2}, True),
    "mixture_of_experts": ((3,), {"experts": 2, "hidden": 3, "activation": "tanh"}, True),
    "vq_mlp": ((3,), {"hidden": 4, "groups": 2, "size": 2, "codes": 3, "activation": "tanh"}, True),
}


def made(name: str, seed: int = 0, **more: Any) -> nn.Module:
    """Returns the small network of a name."""
    shape, arguments, _ = SMALL[name]
    section = build(Config, {"model": {"name": name, **arguments, **more}}).model
    return MODELS[name](section, torch.Size(shape), 3, torch.Generator().manual_seed(seed))


def batch(name: str, n: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    x = torch.randn((n, *SMALL[name][0]), generator=stream, dtype=torch.float64).to(dtype)
    return x, torch.arange(n) % 3


def test_every_network_of_the_registry_is_tested() -> None:
    assert list(SMALL) == list(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_a_network_returns_one_score_per_class_and_keeps_the_global_generator(name: str) -> None:
    before = torch.get_rng_state()
    model = made(name)
    x, _ = batch(name, dtype=torch.float32)
    assert model(x).shape == (4, 3)
    assert torch.equal(model(x[:1]), model(x)[:1]) or torch.allclose(model(x[:1]), model(x)[:1], atol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ZOO)
def test_the_initial_weights_are_named_by_the_stream_alone(name: str) -> None:
    same, again, other = (torch.cat([p.flatten() for p in made(name, seed).parameters()]) for seed in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize("name", ZOO)
def test_the_defaults_fit_mnist_and_their_blocks_are_sites_or_between_them(name: str) -> None:
    section = build(Config, {"model": {"name": name}}).model
    model = MODELS[name](section, torch.Size((1, 28, 28)), 10, torch.Generator())
    net = GLR(model, 0.5, copies=2)
    net.prepare(torch.rand(2, 1, 28, 28))
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    suffixes = [site.suffix for site in net.network.sites]
    assert suffixes == sorted(suffixes, reverse=True)
    assert suffixes[-1] == 0, "the last redraw runs the last layer again"


# J hardly depends on these: a softmax ignores what all its scores share, a norm most of what a group of channels does.
FLAT = {"vit": ("2.attention.k_proj.bias",), "vgg8": ("0.bias", "3.bias")}
MORE: dict[str, dict[str, Any]] = {  # for networks of many units
    "lenet5": {"samples": 500},
    "mixture_of_experts": {"steps": 40},
    "vgg8": {"samples": 1000, "copies": 128, "steps": 40},
    "resnet8": {"samples": 2000, "copies": 64},
}


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in ("gru", "quantised_mlp", "spiking_mlp")))
        for name in ZOO
    ],
)
def test_every_parameter_gets_its_gradient(name: str) -> None:
    model = made(name).double()
    x, y = batch(name)
    jumps = SMALL[name][2]
    options = {"noise": 1.0 if jumps else 0.5, "samples": 10_000 if jumps else 4_000, **MORE.get(name, {})}
    found = slopes(model, x, y, differences=jumps, **options)
    assert set(found) == {key for key, _ in model.named_parameters()}
    assert {key: slope for key, slope in found.items() if abs(slope.z) > Z} == {}
    told = {key: slope for key, slope in found.items() if key not in FLAT.get(name, ())}
    assert {key: slope for key, slope in told.items() if slope.error > 0.5} == {}, "too few estimates to tell"


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_two_threads_give_the_bits_of_one(name: str) -> None:
    x, y = batch(name, 5, torch.float32)
    grads = []
    for threads in (1, 2):
        net = GLR(made(name), 0.5, copies=8, example_block=2, block_elements=64, executor=Inline(threads))
        net.estimate(x, y)
        grads.append({key: parameter.grad for key, parameter in net.model.named_parameters()})
    assert all(torch.equal(grad, grads[1][key]) for key, grad in grads[0].items())


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "lenet5", "activation": "rellu"}, "activation: 'rellu' is unknown; did you mean 'relu'?"),
        ({"name": "lenet5", "activaton": "relu"}, "model.activaton: is not an argument of lenet5; did you mean 'activ"),
        ({"name": "lenet5", "generator": 1}, "model.generator: is not an argument of lenet5; it takes activation"),
        ({"name": "lenet5", "hidden": [50]}, "model.hidden: is not an argument of lenet5"),
        ({"name": "vgg8", "width": 0}, "vgg8: width 0 is not allowed: an integer >= 1"),
        ({"name": "resnet8", "width": True}, "resnet8: width True is not allowed"),
        ({"name": "vit", "patch": 5}, "vit: patch 5 is not allowed: a divisor of the sides 28 and 28"),
        ({"name": "vit", "heads": 3}, "vit: heads 3 is not allowed: a divisor of width 32"),
        ({"name": "gru", "units": "64"}, "gru: units '64' is not allowed"),
        ({"name": "spiking_mlp", "hidden": []}, "spiking_mlp: layers 0 is not allowed"),
        ({"name": "spiking_mlp", "hidden": 8}, "spiking_mlp: hidden 8 is not allowed: a list of integers >= 1"),
        ({"name": "spiking_mlp", "hidden": [8, 0]}, "spiking_mlp: hidden 0 is not allowed"),
        ({"name": "spiking_mlp", "leak": 1.5}, "LIF: leak 1.5 is not allowed: a number from 0 to 1"),
        ({"name": "spiking_cnn", "channels": [1] * 5}, "images [C, H, W] of at least 32 x 32 pixels"),
        ({"name": "quantised_mlp", "bits": 0}, "Quantise: bits 0 is not allowed: an integer from 1 to 16"),
        ({"name": "mixture_of_experts", "experts": 1}, "experts 1 is not allowed: an integer >= 2"),
        ({"name": "vq_mlp", "codes": 1}, "codes 1 is not allowed: an integer >= 2"),
    ],
    ids=str,
)
def test_an_argument_that_is_not_allowed_is_one_line(section: dict[str, Any], said: str) -> None:
    model = build(Config, {"model": section}).model
    with pytest.raises(ConfigError) as caught:
        MODELS[model.name](model, torch.Size((1, 28, 28)), 10, torch.Generator())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lenet5", "gru", "vit", "spiking_cnn"])
def test_a_network_for_images_refuses_other_inputs(name: str) -> None:
    model = build(Config, {"model": {"name": name}}).model
    with pytest.raises(ConfigError, match=rf"{name}: inputs of shape \[7\] are not allowed: images \[C, H, W\]"):
        MODELS[name](model, torch.Size((7,)), 10, torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["lenet5", "vgg8", "resnet8", "mixture_of_experts", "vq_mlp"])
def test_every_activation_is_accepted(name: str, activation: str) -> None:
    net = GLR(made(name, activation=activation), 0.5, copies=2)
    net.estimate(*batch(name, dtype=torch.float32))
    assert all(parameter.grad is not None for parameter in net.model.parameters())


# ---------------------------------------------------------------- configurations


def test_a_config_names_a_network_and_its_arguments(tmp_path: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {name: spiking_mlp, hidden: [8, 6], steps: 4}\nestimator: {copies: 4}\n")
    config = load_config(path, ["model.steps=3", "seed=5"])
    net = network_of(config, load(config.data), torch.device("cpu"))
    assert [type(module) for module in net.model][1:6] == [nn.Linear, Constant, LIF, nn.Linear, LIF]
    assert (net.model[2].steps, net.model[4].out_features) == (3, 6)
    path.write_text(dump(config.model_dump(mode="json")))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "spiking_mpl"}, "model.name: 'spiking_mpl' is not allowed"),
        ({"name": ["gru"]}, "model.name: ['gru'] is not allowed"),
        ({"name": "gru", "weights": ""}, "model.weights: '' is not allowed"),
        ({"name": "gru", "weights_sha256": "0" * 64}, "model.weights_sha256: has no effect without model.weights"),
        ({"hiden": [3]}, "model.hiden: unknown key; did you mean 'hidden'?"),
        ({"steps": 3}, "model.steps: unknown key"),
        (3, "model: 3 is not allowed: a mapping"),
    ],
    ids=str,
)
def test_a_section_that_is_not_allowed_is_one_line(section: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Config, {"model": section})
    assert str(caught.value).startswith(said)


# ---------------------------------------------------------------- parts


def test_a_neuron_leaks_fires_and_falls_by_its_threshold() -> None:
    currents = torch.tensor([[0.6, 0.6, 0.6, 2.5, 0.0], [-1.0, 1.5, 1.0, 0.0, 0.0]]).unsqueeze(2)
    u, expected = torch.zeros(2), []
    for z in currents[..., 0].T:
        u = 0.5 * u + z
        expected.append((u > 1).float())
        u = u - expected[-1]
    before = currents.clone()
    assert torch.equal(LIF(0.5)(currents)[..., 0], torch.stack(expected, 1))
    assert LIF(0.5)(currents)[..., 0].tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]
    assert torch.equal(currents, before)
    assert LIF(1.0)(torch.full((1, 10, 1), 0.25)).tolist() == [[[0], [0], [0], [0], [1], [0], [0], [0], [1], [0]]]
    assert not LIF()(currents.requires_grad_()).requires_grad


def test_a_gru_reads_the_rows_from_the_first_to_the_last() -> None:
    model = made("gru")
    x, _ = batch("gru", dtype=torch.float32)
    before, h = x.clone(), torch.zeros(4, 3)
    for row in x[:, 0].unbind(1):
        reset, update = model.step.gates(torch.cat((row, h), 1)).sigmoid().chunk(2, 1)
        candidate = model.step.candidate(torch.cat((row, reset * h), 1)).tanh()
        h = (1 - update) * candidate + update * h
    assert torch.allclose(model(x), model.head(h), atol=1e-6)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [(2, 2), (12, 10), (9, 14)])
def test_pooling_by_strided_views_is_that_of_torch_bit_for_bit(size: tuple[int, int]) -> None:
    x = torch.randn(5, 3, *size, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(HalvingPool2d()(x), nn.AvgPool2d(2)(x))


def test_quantised_values_are_the_nearest_levels() -> None:
    x = torch.tensor([-0.3, 0.0, 0.16, 0.17, 0.5001, 0.84, 7.0])
    assert torch.allclose(Quantise(2)(x), torch.tensor([0, 0, 0, 1, 2, 3, 3]) / 3)
    assert Quantise(8)(torch.linspace(0, 1, 5000)).unique().numel() == 256
    assert not Quantise()(x.clone().requires_grad_()).requires_grad


def test_only_the_chosen_expert_passes() -> None:
    x = torch.tensor([[0.1, 0.2, 1.0, 2.0, 3.0, 4.0], [5.0, 0.2, 1.0, 2.0, 3.0, 4.0]])
    assert TopOne(2, "relu")(x).tolist() == [[0, 0, 3, 4], [1, 2, 0, 0]]
    assert TopOne(2, "sigmoid")(x)[0, :2].tolist() == [0, 0], "an activation of 0 need not be 0"


def test_the_nearest_code_passes() -> None:
    distances = Distances(3, 5)
    z = torch.randn(4, 2, 3)
    squares = (z.unsqueeze(2) - distances.weight).square().sum(-1)
    assert torch.allclose(distances(z), -squares / 2, atol=1e-5)
    assert torch.equal(Nearest(distances.weight)(distances(z)), distances.weight[squares.argmin(-1)])


def test_patches_are_squares_beside_their_positions() -> None:
    x = torch.arange(32.0).view(2, 1, 4, 4)
    found = Patches(2)(x)
    assert found[1, 2, :4].tolist() == x[1, 0, 2:, :2].flatten().tolist()
    assert torch.equal(found[0, :, 4:], torch.eye(4))


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name == "gru")) for name in ZOO])
def test_it_is_exported_for_batches_of_any_size(name):
    section = build(ZooModel, {"name": name, **({"patch": 4} if name == "vit" else {})})
    module = MODELS[name](section, torch.Size((1, 16, 16)), 3, torch.Generator().manual_seed(0)).eval()
    x = torch.rand(7, 1, 16, 16)
    program = torch.export.export(module, (x[:4],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x), module(x))
