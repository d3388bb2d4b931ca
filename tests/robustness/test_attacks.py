"""Attacks: elementwise equality with another library, closed forms, and refusals where nothing would be tested."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from glr_dist.errors import NoGradientError, ZeroGradientError
from glr_dist.losses import cross_entropy
from glr_dist.nn import Heaviside
from glr_dist.robustness.attacks import ATTACKS, FGSM, LBFGS, PGD, RandomSign, Square, TorchLBFGS
from glr_dist.robustness.attacks.lbfgs import minimise, not_the_label
from glr_dist.robustness.targets import WhiteBox
from glr_dist.streams import Key

KEY = Key(7)
BUDGETED = {"fgsm": FGSM, "pgd": PGD, "square": lambda eps: Square(eps, queries=50), "random_sign": RandomSign}


def images(n=16, shape=(1, 8, 8), seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def network(activation=nn.Sigmoid, shape=(1, 8, 8), seed=1):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 20), activation(), nn.Linear(20, 5))
        model[1].weight.mul_(8)
        for layer in (model[1], model[3]):  # centres the logits for pixels and units of about 1/2
            layer.bias.copy_(-layer.weight.sum(1) / 2)
    return model.eval()


def predicted(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


# ---------------------------------------------------------------- against another library


@pytest.fixture(scope="module")
def art():
    return pytest.importorskip("art.attacks.evasion")


def classifier_of(model, shape):
    from art.estimators.classification import PyTorchClassifier

    loss = nn.CrossEntropyLoss(reduction="sum")
    return PyTorchClassifier(model, loss, shape, nb_classes=5, clip_values=(0.0, 1.0), device_type="cpu")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5)], ids=str)
@pytest.mark.parametrize("eps", [0.03, 0.1, 0.3])
@pytest.mark.parametrize(
    ("kind", "steps", "norm"),
    [("fgsm", 1, "linf"), ("pgd", 7, "linf"), ("pgd", 7, "l2")],
    ids=["fgsm", "pgd", "pgd l2"],
)
def test_elementwise_equal_to_another_library(art, shape, eps, kind, steps, norm):
    model, x = network(shape=shape), images(shape=shape)
    eps = eps * 10 if norm == "l2" else eps
    y = predicted(model, x)
    if kind == "fgsm":
        ours, theirs = FGSM(eps), art.FastGradientMethod(classifier_of(model, shape), eps=eps)
    else:
        ours = PGD(eps, steps=steps, step_size=0.25, norm=norm, random_start=False, stop=False)
        theirs = art.ProjectedGradientDescentNumpy(
            classifier_of(model, shape),
            norm={"linf": np.inf, "l2": 2}[norm],
            eps=eps,
            eps_step=0.25 * eps,
            max_iter=steps,
            num_random_init=0,
            verbose=False,
        )
    expected = theirs.generate(x.numpy(), y.numpy())
    found = ours(WhiteBox(model), x, y, KEY).images
    assert np.abs(found.numpy() - expected).max() <= 1e-6
    assert np.abs(expected - x.numpy()).max() > 0.02


@pytest.mark.slow
def test_square_is_no_weaker_than_another_library(art):
    model, x = network(), images(64)
    y = predicted(model, x)
    eps = 0.1
    theirs = art.SquareAttack(classifier_of(model, (1, 8, 8)), eps=eps, max_iter=300, p_init=0.8, verbose=False)
    with torch.random.fork_rng():
        np.random.seed(0)  # noqa: NPY002  # the other library draws from the global stream
        expected = predicted(model, torch.from_numpy(theirs.generate(x.numpy(), y.numpy())))
    found = predicted(model, Square(eps, queries=300)(WhiteBox(model), x, y, KEY).images)
    assert (found == y).sum() <= (expected == y).sum() + 3
    assert (found != y).float().mean() > 0.3


# ---------------------------------------------------------------- properties of every attack


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 1, 1)], ids=str)
def test_perturbations_stay_within_eps_and_the_pixel_range_and_are_reproducible(name, shape):
    model, x = network(shape=shape), images(shape=shape)
    y = predicted(model, x)
    attack = BUDGETED[name](0.2)
    found = attack(WhiteBox(model), x, y, KEY)
    assert found.images.shape == x.shape
    assert found.images.dtype == x.dtype
    assert (found.images - x).abs().max() <= 0.2 + 1e-6
    assert 0 <= found.images.min() <= found.images.max() <= 1
    assert found.tested.shape == y.shape
    assert found.tested.all()
    assert torch.equal(attack(WhiteBox(model), x, y, KEY).images, found.images)


@pytest.mark.parametrize("name", ["pgd", "square", "random_sign"])
def test_another_key_draws_other_noise(name):
    model, x = network(), images()
    y = predicted(model, x)
    one, other = (
        BUDGETED[name](0.2)(WhiteBox(model), x, y, key).images for key in (KEY, KEY._replace(example_block=1))
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_empty_block_is_allowed(name):
    attack = ATTACKS[name]() if name.endswith("lbfgs") else ATTACKS[name](eps=0.1)
    found = attack(WhiteBox(network()), images(0), torch.zeros(0, dtype=torch.int64), KEY)
    assert found.images.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "square"])
def test_beats_random_noise_of_the_same_size(name):
    model, x = network(), images(200)
    y = predicted(model, x)
    attacked, noised = (
        (predicted(model, attack(WhiteBox(model), x, y, KEY).images) == y).float().mean()
        for attack in (BUDGETED[name](0.05), RandomSign(0.05))
    )
    assert attacked < noised - 0.05


def test_more_steps_and_a_larger_eps_reduce_the_accuracy():
    model, x = network(), images(200)
    y = predicted(model, x)

    def left(attack):
        return (predicted(model, attack(WhiteBox(model), x, y, KEY).images) == y).sum()

    assert left(PGD(0.06, steps=20)) <= left(FGSM(0.06))
    assert left(PGD(0.06)) < left(PGD(0.03)) < left(PGD(0.01))


@pytest.mark.montecarlo
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_is_uniform_in_the_ball(norm):
    """The fraction within half the radius is 2^-d for L2 and for L∞, here with d = 2: |z| <= 4.5."""
    x = torch.full((20_000, 1, 1, 2), 0.5)
    start = PGD(0.4, norm=norm)._start(x, KEY) - x
    size = start.flatten(1).norm(dim=1) if norm == "l2" else start.abs().amax((1, 2, 3))
    assert size.max() <= 0.4 + 1e-6
    within = (size < 0.2).double().mean().item()
    assert abs(within - 0.25) <= 4.5 * (0.25 * 0.75 / len(x)) ** 0.5


def test_square_respects_its_query_budget():
    model, x = network(), images(8)
    asked = 0

    class Counting(WhiteBox):
        def scores(self, x):
            nonlocal asked
            asked += len(x)
            return super().scores(x)

    Square(1e-4, queries=40)(Counting(model), x, predicted(model, x), KEY)
    assert asked == 40 * len(x)


# ---------------------------------------------------------------- L-BFGS


@pytest.mark.slow
def test_the_minimiser_finds_what_scipy_finds():
    """Several badly scaled quadratics in a box at once, against L-BFGS-B on each alone."""
    stream = torch.Generator().manual_seed(3)
    n, d = 6, 12
    curvature = torch.exp(3 * torch.randn(n, d, generator=stream, dtype=torch.float64))
    mixing = torch.linalg.qr(torch.randn(n, d, d, generator=stream, dtype=torch.float64)).Q
    hessian = mixing @ torch.diag_embed(curvature) @ mixing.mT
    centre = 2 * torch.rand(n, d, generator=stream, dtype=torch.float64) - 0.5

    def objective(x):
        gradient = (hessian @ (x - centre)[..., None])[..., 0]
        return ((x - centre) * gradient).sum(1) / 2, gradient

    seen = []
    found = minimise(objective, torch.full_like(centre, 0.5), 300, seen.append)
    values = objective(found)[0]
    for i in range(n):
        best = minimize(
            lambda x, i=i: float((x - centre[i].numpy()) @ hessian[i].numpy() @ (x - centre[i].numpy()) / 2),
            np.full(d, 0.5),
            bounds=[(0, 1)] * d,
            method="L-BFGS-B",
            options={"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-10, "maxfun": 10**6},
        )
        assert values[i].item() <= best.fun * (1 + 1e-4) + 1e-9
    assert all(((point >= 0) & (point <= 1)).all() for point in seen)


@pytest.mark.slow
def test_lbfgs_finds_the_distance_to_a_plane():
    """The smallest perturbation of a linear two-class classifier is |w·x + b| / |w| if no pixel reaches its bounds."""
    weight = torch.tensor([[0.6, -0.8], [-0.6, 0.8]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(20 * weight)
        model[1].bias.copy_(torch.tensor([2.0, 0.0]))
    x = 0.4 + 0.2 * images(20, (1, 1, 2))
    y = predicted(model, x)
    found = LBFGS()(WhiteBox(model), x, y, KEY).images
    assert (predicted(model, found) != y).all()
    scores = model(x).detach()
    expected = (scores[:, 0] - scores[:, 1]).abs() / (2 * 20)
    norms = (found - x).flatten(1).norm(dim=1)
    assert (norms >= expected - 1e-6).all()
    assert (norms <= expected * 1.01 + 1e-4).all()


@pytest.mark.slow
def test_lbfgs_needs_smaller_l2_changes_than_pgd():
    model, x = network(), images(24)
    y = predicted(model, x)
    found = LBFGS()(WhiteBox(model), x, y, KEY).images
    assert (predicted(model, found) != y).all()
    ours = (found - x).flatten(1).norm(dim=1)
    # The smallest radius at which PGD succeeds on each example: both attacks then have the same success rate.
    theirs = torch.full_like(ours, torch.inf)
    for radius in torch.linspace(4, 0.02, 20).tolist():
        attacked = PGD(radius, steps=20, step_size=0.15, norm="l2", random_start=False)(
            WhiteBox(model), x, y, KEY
        ).images
        norms = (attacked - x).flatten(1).norm(dim=1)
        theirs = torch.where(predicted(model, attacked) != y, norms.minimum(theirs), theirs)
    assert theirs.isfinite().all()
    assert ours.mean() < theirs.mean()
    assert (ours < theirs + 0.02).all()


@pytest.mark.slow
def test_lbfgs_attacks_examples_independently():
    model, x = network(), images(6)
    y = predicted(model, x)
    attack = LBFGS(iterations=10, searches=5)
    together = attack(WhiteBox(model), x, y, KEY).images
    alone = torch.cat([attack(WhiteBox(model), x[i : i + 1], y[i : i + 1], KEY).images for i in range(3)])
    assert torch.allclose(together[:3], alone, atol=1e-3)


@pytest.mark.slow
def test_lbfgs_does_not_change_misclassified_images():
    model, x = network(), images(6)
    y = (predicted(model, x) + 1) % 5
    assert torch.equal(LBFGS()(WhiteBox(model), x, y, KEY).images, x)


def test_not_the_label_is_minus_the_log_of_the_other_classes_probability():
    scores = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
    y = torch.tensor([1, 2])
    shares = 1 - scores.softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(not_the_label(scores, y), -shares.log())
    assert not_the_label(torch.tensor([[0.0, 200.0]]), torch.tensor([1])).isfinite()


def test_torch_lbfgs_is_one_step_of_the_optimizer_on_each_image_clipped_afterwards():
    model, x = network(), images(5)
    y = predicted(model, x)
    found = TorchLBFGS()(WhiteBox(model), x, y, KEY).images
    for i in range(5):
        point = x[i : i + 1].clone().requires_grad_()
        optimizer = torch.optim.LBFGS([point], lr=0.05)

        def closure(point=point, optimizer=optimizer, i=i):
            optimizer.zero_grad()
            loss = -nn.functional.cross_entropy(model(point), y[i : i + 1])
            loss.backward()
            return loss

        optimizer.step(closure)
        torch.testing.assert_close(found[i : i + 1], point.detach().clamp(0, 1))
    assert not torch.equal(found, x)
    assert torch.isfinite(TorchLBFGS(lr=1e30)(WhiteBox(model), x, y, KEY).images).all()


# ---------------------------------------------------------------- refusals

FOLLOWERS = {"fgsm": FGSM(0.1), "pgd": PGD(0.1, steps=3), "lbfgs": LBFGS(), "torch_lbfgs": TorchLBFGS()}


class ZeroGradient(nn.Module):
    """Piecewise constant, but differentiable to autograd: the gradient is zero instead of absent."""

    def forward(self, x):
        return x.round()


@pytest.mark.parametrize("name", FOLLOWERS)
@pytest.mark.parametrize("activation", [Heaviside, ZeroGradient])
def test_gradient_attacks_refuse_a_network_without_gradients(name, activation):
    model, x = network(activation), images()
    with pytest.raises(NoGradientError):
        FOLLOWERS[name](WhiteBox(model), x, predicted(model, x), KEY)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWERS)
def test_examples_without_a_gradient_are_marked_as_untested(name):
    """The unit is active for one image only, so the others have no gradient; they do not count as robust."""

    class OneOff(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            return torch.stack([x.sum(1) * (x[:, 0] > 0.9), torch.full_like(x[:, 0], 0.1)], 1)

    x = images(6) * 0.5
    x[2, 0, 0, 0] = 1
    y = torch.zeros(6, dtype=torch.int64)
    found = FOLLOWERS[name](WhiteBox(OneOff()), x, y, KEY._replace(step=5))
    assert found.tested.tolist() == [False, False, True, False, False, False]


def test_a_gradient_that_is_not_finite_counts_as_absent():
    class Steep(nn.Module):
        def forward(self, x):
            return torch.stack([(x.flatten(1).sum(1) * 0).sqrt(), x.flatten(1).sum(1)], 1)

    with pytest.raises(ZeroGradientError, match="finite"):
        FGSM(0.1)(WhiteBox(Steep()), images(), torch.zeros(16, dtype=torch.int64), KEY)

    class SteepOnce(nn.Module):
        def forward(self, x):
            z = x.flatten(1).sum(1)
            return torch.stack([torch.cat([z[:2], z[2:3] + (z[2:3] * 0).sqrt(), z[3:]]), -z], 1)

    found = FGSM(0.1)(WhiteBox(SteepOnce()), images(4), torch.zeros(4, dtype=torch.int64), KEY)
    assert found.tested.tolist() == [True, True, False, True]
    assert found.images.isfinite().all()


def test_square_and_noise_need_no_gradient():
    model, x = network(Heaviside), images(60)
    y = predicted(model, x)
    left = (predicted(model, Square(0.2, queries=300)(WhiteBox(model), x, y, KEY).images) == y).float().mean()
    noised = (predicted(model, RandomSign(0.2)(WhiteBox(model), x, y, KEY).images) == y).float().mean()
    assert left < noised - 0.2


# ---------------------------------------------------------------- targets


def test_the_gradients_of_examples_are_independent():
    model, x = network(), images()
    y = predicted(model, x)
    together = WhiteBox(model).gradients(x, y, cross_entropy)
    alone = torch.cat([WhiteBox(model).gradients(x[i : i + 1], y[i : i + 1], cross_entropy) for i in range(len(x))])
    assert torch.allclose(together, alone, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pgd_keeps_the_first_point_that_fools_the_target():
    """The steps end at 0.4, but the network is fooled near 0.2 only: the last point would count as correct."""

    class Narrow(nn.Module):
        def forward(self, x):
            z = x.flatten(1).sum(1)
            return torch.stack([-z, torch.where((z > 0.15) & (z < 0.25), 1.0, -9.0)], 1)

    x, y = torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)
    options = {"steps": 4, "step_size": 0.25, "random_start": False}
    kept, last = (PGD(0.4, **options, stop=stop)(WhiteBox(Narrow()), x, y, KEY).images for stop in (True, False))
    assert torch.allclose(kept, torch.full_like(x, 0.2))
    assert torch.allclose(last, torch.full_like(x, 0.4))


def test_square_can_continue_beyond_the_decision_boundary():
    model, x = network(), images(40)
    y = predicted(model, x)
    stopped, on = (Square(0.2, queries=200, stop=stop)(WhiteBox(model), x, y, KEY).images for stop in (True, False))

    def margin(x):
        return (model(x).gather(1, y[:, None])[:, 0] - model(x).scatter(1, y[:, None], -torch.inf).amax(1)).detach()

    assert (margin(on) <= margin(stopped) + 1e-5).all()
    assert margin(on).mean() < margin(stopped).mean() - 0.3


def test_a_margin_of_zero_is_not_a_success_of_square():
    """Of two equal scores, the first class is predicted."""
    x = torch.zeros(2, 1, 2, 2)

    class Equal(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), (x.flatten(1)[:, 0] > 0.05).float()], 1)

    found = Square(0.1, queries=200)(WhiteBox(Equal()), x, torch.zeros(2, dtype=torch.int64), KEY).images
    assert (predicted(Equal(), found) == 1).all()
