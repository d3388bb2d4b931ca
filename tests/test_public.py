"""The public API: what a PyTorch user tries first works, or is refused with the remedy."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from dataclasses import dataclass

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

import glr_dist
from glr_dist import GLR, ConfigError, Noise, SiteError
from glr_dist.execution.inline import Inline


def net_of(noise: object = 0.5, **options: object) -> GLR:
    stream = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), glr_dist.nn.Heaviside(), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1, generator=stream)
    return GLR(model, noise, **{"copies": 8, **options})


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=stream), torch.tensor([0, 1, 0, 1, 1, 0])


# ---------------------------------------------------------------- custom laws


class Cosh(Noise):
    """p(ε) = 1 / (π cosh ε), score tanh ε; by its quantile alone."""

    def quantile(self, u: Tensor) -> Tensor:
        return (torch.pi / 2 * u).tan().log()

    def score(self, eps: Tensor) -> Tensor:
        return eps.tanh()


class Sampled(Noise):
    """Gaussian noise without a quantile."""

    def sample(self, shape, stream, dtype):
        return torch.randn(tuple(shape), generator=stream, dtype=dtype, device=stream.device)

    def score(self, eps: Tensor) -> Tensor:
        return eps


class Duck:
    """The same law, as an object that is not a `Noise`."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def sample(self, shape, stream, dtype):
        return torch.randn(tuple(shape), generator=stream, dtype=dtype, device=stream.device)

    def score(self, eps: Tensor) -> Tensor:
        return eps


@dataclass(frozen=True)
class Gumbel(Noise):
    """p(ε) = exp(-ε - e^-ε): smooth, not symmetric."""

    def quantile(self, u: Tensor) -> Tensor:
        return -(-u.log()).log()

    def score(self, eps: Tensor) -> Tensor:
        return 1 - (-eps).exp()


def gradients(net: GLR, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return net.gradients(*batch, glr_dist.losses.zero_one).grads


def test_a_law_of_ones_own_gives_the_bits_of_the_same_law_built_in(batch):
    expected = gradients(net_of(glr_dist.Gaussian(0.5), sampler="iid"), batch)
    for law in (Sampled(0.5), Duck(0.5)):
        found = gradients(net_of(law), batch)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("law", [Cosh(0.5), Gumbel({"0": 0.5, "2": 0.3}), Gumbel(0.5, learn="unit")], ids=repr)
def test_own_laws_train(law, batch):
    net = net_of(law, antithetic=False)
    net.estimate(*batch)
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


def test_the_scale_of_an_own_law_is_changed_and_learned(batch):
    net = net_of(Duck(0.5))
    net.prepare(batch[0])
    net.set_scale({"0": 0.1, "2": 0.2})
    assert [scale.item() for scale in net.scales().values()] == pytest.approx([0.1, 0.2])
    assert net.noise.law == "Duck"


def test_a_law_that_is_not_symmetric_is_refused_only_where_pairs_need_it(batch):
    with pytest.raises(ConfigError, match=r"antithetic: .*Gumbel is not; pass antithetic=False"):
        net_of(Gumbel(0.5))
    with pytest.raises(ConfigError, match="orthogonal' needs the gaussian law"):
        net_of(Cosh(0.5), sampler="orthogonal")
    for options in (
        {"estimator": "pathwise", "copies": None},
        {"antithetic": False},
        {"sampler": "sobol", "antithetic": False},
    ):
        assert net_of(Gumbel(0.5), **options).noise.law == "Gumbel"
    with pytest.raises(ConfigError, match=r"sampler: 'sobol' needs a law with quantile"):
        net_of(Sampled(0.5), sampler="sobol")


class Global(Sampled):
    def sample(self, shape, stream, dtype):
        return torch.randn(tuple(shape), dtype=dtype)


class Frozen(Sampled):
    def sample(self, shape, stream, dtype):
        return torch.linspace(-1, 1, shape[0], dtype=dtype)


class WrongScale(Sampled):
    def score(self, eps: Tensor) -> Tensor:
        return eps / 2


class Exponential(Sampled):
    """Its density jumps at 0: the likelihood-ratio formula would be biased."""

    def sample(self, shape, stream, dtype):
        return torch.empty(tuple(shape), dtype=dtype, device=stream.device).exponential_(generator=stream)

    def score(self, eps: Tensor) -> Tensor:
        return torch.ones_like(eps)


class WrongQuantile(Sampled):
    def quantile(self, u: Tensor) -> Tensor:
        return 2 * torch.special.ndtri(u)


class Summed(Sampled):
    def score(self, eps: Tensor) -> Tensor:
        return eps.sum()


class WrongType(Sampled):
    def sample(self, shape, stream, dtype):
        return torch.randn(tuple(shape), generator=stream)


class Infinite(Sampled):
    def sample(self, shape, stream, dtype):
        return 1 / torch.zeros(tuple(shape), dtype=dtype)


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (Global(1.0), "must draw from `stream`"),
        (Frozen(1.0), "must draw from `stream`"),
        (WrongScale(1.0), "score is not that of sample"),
        (Exponential(1.0), "score is not that of sample"),
        (WrongQuantile(1.0), "quantile"),
        (Summed(1.0), "score.eps. must return"),
        (WrongType(1.0), "of that shape and dtype"),
        (Infinite(1.0), "finite"),
        (Duck, "the class Duck; make an object of it"),
        ("gaussian", "is not allowed: a scale, an object"),
        (True, "is not allowed"),
        (-0.3, "> 0"),
        (float("nan"), "> 0"),
    ],
    ids=str,
)
def test_what_is_not_a_law_is_refused_in_one_line(law, words):
    with pytest.raises(ConfigError, match=words) as caught:
        net_of(law, antithetic=False)
    assert "\n" not in str(caught.value)


def test_a_number_is_the_scale_of_gaussian_noise(batch):
    expected = gradients(net_of(glr_dist.Gaussian(0.3)), batch)
    found = gradients(net_of(0.3), batch)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert net_of({"0": 0.5, "2": 0.1}).noise == glr_dist.Gaussian({"0": 0.5, "2": 0.1})


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("num_samples", "copies"),
        ("samples", "copies"),
        ("population", "copies"),
        ("popsize", "copies"),
        ("sigma", "noise"),
        ("std", "noise"),
        ("mirrored", "antithetic"),
        ("num_workers", "actors"),
        ("copys", "copies"),
        ("Sampler", "sampler"),
        ("antitetic", "antithetic"),
    ],
)
def test_an_unknown_option_names_the_right_one(name, option):
    with pytest.raises(ConfigError, match=rf"{name}: is not an option of GLR; did you mean '{option}'\?"):
        net_of(**{name: 10})


def test_options_are_named_parameters_with_the_defaults_of_the_configuration():
    parameters = inspect.signature(GLR).parameters
    for name in glr_dist.Config().estimator.model_fields_set | set(type(glr_dist.Config().estimator).model_fields):
        assert name == "name" or name in parameters
    assert net_of(copies=None).options == glr_dist.Config().estimator


def test_executors_are_reached_by_name_class_or_number():
    assert isinstance(net_of(executor="inline").executor, Inline)
    assert net_of(executor=glr_dist.Inline(2)).executor.threads == 2
    with pytest.raises(ConfigError, match="executor: 'layer' is not allowed: 'inline', 'layers'"):
        net_of(executor="layer")
    with pytest.raises(ConfigError, match="actors: cannot stand beside"):
        net_of(executor=glr_dist.Inline(1), actors=2)


def test_replicas_without_a_process_group_say_so(batch):
    with pytest.raises(glr_dist.UserError, match=r"no process group; call torch\.distributed"):
        net_of(executor=glr_dist.Replicas(1)).estimate(*batch)


@pytest.mark.long
@pytest.mark.ray
def test_actors_of_a_net_give_the_bits_of_inline(local_ray, batch):
    expected = gradients(net_of(), batch)
    net = net_of(actors=1)
    try:
        found = gradients(net, batch)
    finally:
        net.close()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("learn", ["none", "site", "unit"])
@pytest.mark.parametrize("prepared", [True, False])
def test_a_state_round_trips_also_before_prepare(tmp_path, batch, learn, prepared):
    trained = net_of(glr_dist.Gaussian(0.5, learn=learn))
    trained.prepare(batch[0])
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.1)
    trained.estimate(*batch)
    optimizer.step()
    torch.save(trained.state_dict(), tmp_path / "net.pt")
    fresh = net_of(glr_dist.Gaussian(0.5, learn=learn), seed=0)
    if prepared:
        fresh.prepare(batch[0])
    fresh.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert {name: p.requires_grad for name, p in fresh.named_parameters()} == {
        name: p.requires_grad for name, p in trained.named_parameters()
    }
    fresh.step = trained.step
    found, expected = fresh.gradients(*batch), trained.gradients(*batch)
    for name, value in expected.grads.items():
        assert torch.equal(found.grads[name], value)
    for name, value in expected.scales.items():
        assert torch.equal(found.scales[name], value)


@pytest.mark.parametrize("prepared", [True, False])
def test_a_scale_that_is_set_after_loading_counts(batch, prepared):
    trained, fresh = net_of(0.5), net_of(0.3)
    trained.prepare(batch[0])
    if prepared:
        fresh.prepare(batch[0])
    fresh.load_state_dict(trained.state_dict())
    fresh.set_scale({"0": 0.1, "2": 0.2})
    fresh.prepare(batch[0])
    assert [scale.item() for scale in fresh.scales().values()] == pytest.approx([0.1, 0.2])


def test_a_net_with_an_own_law_is_copied_and_pickled(batch):
    net = net_of(Duck(0.5))
    expected = gradients(net, batch)
    for other in (copy.deepcopy(net), cloudpickle.loads(cloudpickle.dumps(net))):
        found = gradients(other, batch)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert pickle.loads(pickle.dumps(net.noise)).law == "Duck"


def test_states_of_nets_that_were_never_prepared_round_trip(batch):
    fresh, prepared = net_of(), net_of()
    prepared.prepare(batch[0])
    prepared.load_state_dict(fresh.state_dict())
    net_of().load_state_dict(net_of().state_dict())
    assert [scale.item() for scale in prepared.scales().values()] == pytest.approx([0.5, 0.5])


def test_a_state_of_another_network_or_another_learn_is_refused(batch):
    trained = net_of(glr_dist.Gaussian(0.5, learn="unit"))
    trained.prepare(batch[0])
    other = net_of(glr_dist.Gaussian(0.5, learn="site"))
    other.load_state_dict(trained.state_dict())
    with pytest.raises(SiteError, match=r"loaded scale of site '0' has shape \(5,\), not \(\) as learn='site'"):
        other.prepare(batch[0])
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        GLR(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).load_state_dict(trained.state_dict())


# ---------------------------------------------------------------- a run, read back


@pytest.mark.slow
def test_a_run_is_read_back_in_one_line(tiny, tmp_path):
    summary = glr_dist.train(tiny(), tmp_path / "run")
    run = glr_dist.load_run(str(tmp_path / "run"), device="cpu")
    x, y = run.data.test.batch(slice(None))
    assert (run.predict(x) == y).double().mean().item() == summary["test_accuracy"]
    assert run(x).shape == (len(y), 10)
    assert not run(x).requires_grad
    assert (run.config, run.epoch, run.device.type) == (tiny(), 3, "cpu")
    assert [record["epoch"] for record in run.metrics] == [1, 2, 3]
    with pytest.raises(ConfigError, match="is not a run"):
        glr_dist.load_run(tmp_path)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", glr_dist.__all__)
def test_what_is_public_exists_and_is_documented(name):
    found = getattr(glr_dist, name)
    assert name in dir(glr_dist)
    doc = inspect.getdoc(found)
    assert doc is not None
    assert len(doc.splitlines()[0]) > 20
    if inspect.isclass(found):
        for attribute, value in vars(found).items():
            if inspect.isfunction(value) and not attribute.startswith("_"):
                assert inspect.getdoc(getattr(found, attribute)), f"{name}.{attribute}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'GRL'"):
        _ = glr_dist.GRL


@pytest.mark.process
def test_importing_the_package_imports_no_torch():
    code = "import sys, glr_dist; dir(glr_dist); sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
