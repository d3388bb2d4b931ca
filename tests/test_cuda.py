"""On a CUDA device: the same streams give the same estimates, and they estimate the same gradient."""

import pytest
import torch

from glr_dist import GLR, Gaussian, Laplace
from glr_dist.nn import mlp, resnet8
from glr_dist.robustness.evaluate import evaluate
from glr_dist.robustness.suite import load_suite
from glr_dist.training.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _estimate(device, noise=None, **options):
    model = mlp(20, [16], 4, "sigmoid", generator=torch.Generator().manual_seed(0)).to(device)
    x = torch.rand(32, 20, generator=torch.Generator().manual_seed(1)).to(device)
    y = (torch.arange(32) % 4).to(device)
    return GLR(model, noise or Gaussian(0.5), **options).gradients(x, y).grads


@pytest.mark.parametrize(
    ("noise", "options"),
    [
        (None, {"copies": 512}),
        (None, {"copies": 512, "sampler": "sobol"}),
        (Laplace(0.5), {"copies": 2048}),
        (None, {"copies": 512, "head": "derivative"}),
        (None, {"copies": 512, "redraw": "auto", "head": "auto", "passes": 64}),
        (None, {"redraw": {"1": "differences", "*": "copies"}, "copies": 512, "passes": 64}),
        (None, {"estimator": "joint", "copies": 20000}),
    ],
)
def test_estimates_repeat_and_agree_with_autograd(noise, options):
    first, again = _estimate("cuda", noise, **options), _estimate("cuda", noise, **options)
    reference = _estimate("cpu", noise, estimator="pathwise", passes=2000)
    for name, grad in first.items():
        assert torch.equal(grad, again[name])
        assert torch.cosine_similarity(grad.cpu().flatten(), reference[name].flatten(), 0) > 0.9


def test_column_spaces_and_learned_feedback_repeat_and_agree_with_autograd():
    found = [_learned("cuda") for _ in range(2)]
    reference = _learned("cpu", estimator="pathwise", passes=2000)
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name])
        assert torch.cosine_similarity(grad.cpu().flatten(), reference[name].flatten(), 0) > 0.9


def test_a_step_of_a_convolutional_network_repeats_bit_by_bit():
    """The fastest gradients of convolutions add in another order in each call."""
    x, y = torch.rand(64, 3, 32, 32, device="cuda"), torch.arange(64, device="cuda") % 10
    found = []
    for _ in range(3):
        model = resnet8((3, 32, 32), 10, generator=torch.Generator().manual_seed(0)).cuda()
        found.append(GLR(model, 0.3, copies=8, redraw="auto", feedback="control_variate").gradients(x, y).grads)
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name])
        assert torch.equal(grad, found[2][name])


def _learned(device, **options):
    """The gradient of a small convolutional network; the feedback has seen three steps at the same weights."""
    stream = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(72, 3))
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5, generator=stream)
    x, y = torch.rand(32, 1, 7, 7, generator=stream).to(device), (torch.arange(32) % 3).to(device)
    chosen = options or {
        "copies": 256,
        "passes": 16,
        "redraw": {"0": "column_space", "*": "copies"},
        "feedback": "control_variate",
    }
    net = GLR(model.to(device), Gaussian(0.5), **chosen)
    for _ in range(0 if options else 3):
        net.estimate(x, y)
    return net.gradients(x, y).grads


def test_noise_of_wide_seeds_differs():
    x = torch.rand(8, 20, device="cuda")
    y = torch.arange(8, device="cuda") % 4
    model = mlp(20, [16], 4).cuda()
    grads = [GLR(model, Gaussian(0.5), copies=8, seed=seed).gradients(x, y).grads for seed in (5, 5 + 2**32)]
    assert not torch.equal(grads[0]["1.weight"], grads[1]["1.weight"])


def test_a_run_on_the_cpu_is_attacked_and_corrupted_on_a_gpu(tmp_path, tiny, monkeypatch):
    """Corrupted images are the same on every device, attacks draw other noise: accuracies agree within a few images."""
    monkeypatch.setenv("GLR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    train(tiny("training.epochs=10"), folder)
    suite = load_suite("quick", ["examples=200", "surrogate.training.epochs=2"])
    reports = [evaluate([folder], suite, device=device)[0] for device in ("cuda", "cuda", "cpu")]
    assert reports[0] == reports[1]
    for there, here in zip(reports[0].corruptions, reports[2].corruptions, strict=True):
        assert abs(there.rate.accuracy - here.rate.accuracy) <= 0.01
    for there, here in zip(reports[0].attacks, reports[2].attacks, strict=True):
        assert (there.rate is None) == (here.rate is None)
        if there.rate and here.rate:
            assert abs(there.rate.accuracy - here.rate.accuracy) <= 0.1
