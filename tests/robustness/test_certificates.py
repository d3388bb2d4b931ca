"""Certificates: soundness of the bounds, closed forms, the check by an attack, reproducibility, and refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from torch import nn

from glr_dist import GLR, Gaussian, Laplace, cli
from glr_dist.config import Config, build, load_config
from glr_dist.data import Split
from glr_dist.errors import ConfigError, SiteError
from glr_dist.execution.inline import Inline
from glr_dist.losses import zero_one
from glr_dist.robustness import workers
from glr_dist.robustness.certificates import first_segment, methods, smoothing
from glr_dist.robustness.certificates.bounds import certified_radius, lower_bound, upper_bound
from glr_dist.robustness.certificates.certify import certify
from glr_dist.robustness.certificates.certify_block import Certified, certify_block
from glr_dist.robustness.certificates.files import CertificateFiles, certificate_names, read_certificates
from glr_dist.robustness.certificates.first_segment import lipschitz_bound
from glr_dist.robustness.certificates.norms import convolution_norm, matrix_norm
from glr_dist.robustness.certificates.report import ContradictionError, report_of
from glr_dist.robustness.certificates.settings import Certification, load_certification
from glr_dist.robustness.certificates.smoothing import Smoothing
from glr_dist.robustness.certificates.verdict import Attacked, Verdict, contradiction
from glr_dist.streams import Key, Role, generator
from glr_dist.training.train import train
from glr_dist.training.trained_run import load_run

SMALL = ("examples=24", "n=600", "n0=40", "block=5", "attack={examples: 8, eps: [0.1, 0.4], steps: 4, draws: 100}")


def small(*overrides):
    return load_certification([*SMALL, *overrides])


def prepared(model, noise=1.0, shape=(1, 3, 4), **options):
    """A network with its sites, in evaluation mode."""
    net = GLR(model, noise, **options).eval()
    net.prepare(torch.zeros(2, *shape))
    return net


def images(n=8, shape=(1, 3, 4), seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the bound of the probability


@pytest.mark.montecarlo
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_lower_bound_is_wrong_no_more_often_than_alpha(alpha):
    """10,000 random (p, n); z bound 4."""
    rng = np.random.default_rng(0)
    p, n = 1 - rng.random(10_000) ** 3, rng.integers(1, 2000, 10_000)
    k = rng.binomial(n, p)
    wrong = sum(lower_bound(int(k), int(n), alpha) > p for p, n, k in zip(p, n, k, strict=True))
    assert wrong <= 10_000 * alpha + 4 * math.sqrt(10_000 * alpha * (1 - alpha))


@pytest.mark.parametrize("alpha", [1e-9, 0.001, 0.05])
@pytest.mark.parametrize("n", [1, 7, 100, 1000])
def test_the_coverage_of_the_bounds_computed_exactly(n, alpha):
    k = np.arange(n + 1)
    lower = np.array([lower_bound(int(each), n, alpha) for each in k])
    upper = np.array([upper_bound(int(each), n, alpha) for each in k])
    for p in (0.001, 0.3, 0.5, 0.5 + 1e-9, 0.9, 0.99, 1 - 1e-6):
        assert binom.pmf(k[lower > p], n, p).sum() <= alpha * (1 + 1e-6)
        assert binom.pmf(k[upper < p], n, p).sum() <= alpha * (1 + 1e-6)
    # and no smaller than they must be: at p = the bound, at least k successes have the probability alpha
    assert binom.sf(n - 1, n, lower[-1]) == pytest.approx(alpha, rel=1e-6)


def test_no_majority_is_an_abstention():
    assert certified_radius(50, 100, 0.001, 1.0) == certified_radius(0, 100, 0.001, 1.0) == 0
    # Cohen et al., figure of appendix D: 100,000 of 100,000 draws certify 3.8 σ at α = 0.001.
    assert certified_radius(100_000, 100_000, 0.001, 1 / 0.25) == pytest.approx(0.25 * 3.81, abs=0.01)


# ---------------------------------------------------------------- norms


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=50, deadline=None)
def test_the_norm_of_a_matrix_is_bounded_tightly(rows, columns, seed, size):
    matrix = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    exact = float(np.linalg.svd(matrix.double().numpy(), compute_uv=False)[0])
    assert exact <= matrix_norm(matrix) <= exact * (1 + 1e-9)
    assert exact <= matrix_norm(matrix.T) <= exact * (1 + 1e-9)


def matrix_of(f, shape):
    """The matrix of a linear map, column by column."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return (f(basis) - f(0 * basis)).flatten(1).T.detach().numpy()


@pytest.mark.slow
@given(
    channels=st.sampled_from([(1, 1, 1), (3, 2, 1), (2, 4, 2)]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(5, 7), st.integers(5, 8)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_the_bound_of_a_convolution_is_never_below_its_norm(channels, kernel, stride, padding, dilation, size, seed):
    inputs, outputs, groups = channels
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups).double()
    with torch.no_grad():
        conv.weight.normal_(generator=torch.Generator().manual_seed(seed))
    exact = np.linalg.svd(matrix_of(conv, (inputs, *size)), compute_uv=False)[0]
    bound = convolution_norm(conv, *size)
    assert bound >= exact * (1 - 1e-12)
    offsets = conv.weight.detach().unflatten(0, (groups, -1)).permute(0, 3, 4, 1, 2)
    total = torch.linalg.matrix_norm(offsets, 2).sum((1, 2)).max().item()
    assert bound <= total * (1 + 1e-6)  # no worse than the sum of the offsets' norms


def test_the_bound_of_a_convolution_is_close_where_the_image_is_large():
    conv = nn.Conv2d(1, 6, 5, padding=2).double()
    exact = np.linalg.svd(matrix_of(conv, (1, 14, 14)), compute_uv=False)[0]
    assert exact <= convolution_norm(conv, 14, 14) <= 1.15 * exact


# ---------------------------------------------------------------- the first segment


class Normalised(nn.Module):
    """(x - mean) / deviation."""

    def forward(self, x):
        return (x - 0.13) / 0.3


def test_the_slope_of_a_linear_first_layer_with_its_own_scale_for_each_unit():
    torch.manual_seed(0)
    layer = nn.Linear(12, 5)
    net = prepared(nn.Sequential(nn.Flatten(), Normalised(), layer, nn.ReLU(), nn.Linear(5, 3)), Gaussian(1, "unit"))
    with torch.no_grad():
        net.log_scales["2"].copy_(torch.linspace(-1, 1, 5))
    scaled = torch.linspace(-1, 1, 5).exp()[:, None].pow(-1) * layer.weight.detach() / 0.3
    exact = float(np.linalg.svd(scaled.double().numpy(), compute_uv=False)[0])
    assert exact * (1 - 1e-6) <= lipschitz_bound(net, images()) <= exact * (1 + 1e-6)


@pytest.mark.parametrize("largest", [2**24, 100, 1])
def test_a_product_of_bounds_is_never_below_the_exact_slope(monkeypatch, largest):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Sigmoid(), nn.Linear(24, 3))
    net = prepared(model, {"0": 0.5, "3": 1.0})
    exact = 2 * np.linalg.svd(matrix_of(nn.Sequential(model[0]).double(), (1, 3, 4)), compute_uv=False)[0]
    model.float()
    monkeypatch.setattr(first_segment, "_LARGEST", largest)
    assert exact * (1 - 1e-9) <= lipschitz_bound(net, images()) <= (1 + 1e-6 if largest > 1000 else 1.6) * exact


class Branch(nn.Module):
    """A block in which the input passes the site."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x):
        return x + self.layer(x).sigmoid()


REFUSED = {
    "a ramp before the first site": (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(12, 3)), 1.0, "'1' (ReLU)"),
    "a norm over the image": (nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3)), 1.0, "'1' (LayerNorm)"),
    "a site inside a block": (nn.Sequential(nn.Flatten(), Branch(), nn.Linear(12, 3)), 1.0, "inside '1'"),
    "another law": (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), Laplace(1.0), "noise at '1' is laplace"),
}


@pytest.mark.parametrize(("model", "noise", "message"), REFUSED.values(), ids=REFUSED)
def test_a_first_segment_without_a_certificate_is_refused_by_name(model, noise, message):
    with pytest.raises(SiteError) as error:
        lipschitz_bound(prepared(model, noise), images())
    assert message in str(error.value)
    assert "input_noise" in str(error.value)


def test_the_first_layer_behind_a_linear_block_that_is_too_large_to_look_at_is_refused(monkeypatch):
    monkeypatch.setattr(first_segment, "_LARGEST", 1)
    net = prepared(nn.Sequential(nn.Flatten(), Normalised(), nn.Linear(12, 3)))
    with pytest.raises(SiteError, match=r"norm of '1' \(Normalised\)"):
        lipschitz_bound(net, images())


# ---------------------------------------------------------------- a linear classifier


def two_classes(scale=0.7, weight=None):
    """Class scores ±(w·x + b): the certificate can be as large as the distance to the boundary."""
    torch.manual_seed(1)
    layer = nn.Linear(12, 2)
    with torch.no_grad():
        w = torch.randn(12) if weight is None else weight
        layer.weight.copy_(torch.stack([w, -w]))
        layer.bias.copy_(torch.tensor([-0.5, 0.5]) * w.sum())
    return prepared(nn.Sequential(nn.Flatten(), layer), Gaussian(scale)), w


def certificates(net, x, y, options, lipschitz=None):
    levels = Split((255 * x).to(torch.uint8), y, 255)
    smoothing = Smoothing.of(net, options.input_noise, options.passes, levels.batch(slice(0, 2))[0])
    certified = Certified(smoothing, levels, options)
    verdicts = [v for block in range(-(-len(y) // options.block)) for v in certify_block(certified, block)]
    if lipschitz is None:
        lipschitz = 1 / options.input_noise if options.input_noise else lipschitz_bound(net, x)
    run = {"run": "linear", "config": {}, "epoch": 1, "params_sha256": "", "scales": {}}
    return levels.batch(slice(None))[0], report_of(options, verdicts, lipschitz, **run)


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("input_noise", [None, 0.5])
def test_the_certificate_of_a_linear_classifier_is_the_distance_to_its_boundary(input_noise):
    net, w = two_classes(0.7 if input_noise is None else 1e-3)
    options = Certification(n0=4000, n=200_000, alpha=1e-6, input_noise=input_noise, attack={"examples": 0})
    x = images(40)
    x, report = certificates(net, x, torch.zeros(40, dtype=torch.int64), options)
    margin = (x.flatten(1).double() - 0.5) @ w.double()
    distance = margin.abs() / w.double().norm()
    sigma = input_noise or 0.7 / (2**0.5 * w.norm().item())
    tested = 0
    for image, d, right in zip(report.images, distance.tolist(), (margin > 0).tolist(), strict=True):
        if image.predicted is None:
            assert d < 0.1 * sigma
            continue
        assert (image.predicted == 0) is right
        # With α = 1e-6 the radius is below the distance, by no more than 10 deviations of the estimate of p.
        assert image.radius <= d
        if d < 3 * sigma:
            tested += 1
            p = norm.cdf(d / sigma)
            least = p - 10 * math.sqrt(p * (1 - p) / options.n)
            assert image.radius >= sigma * norm.ppf(least) * (1 - 1e-3)
    assert tested >= 10


@pytest.mark.slow
def test_an_attack_does_not_contradict_a_right_certificate_and_finds_a_wrong_one():
    net, w = two_classes()
    options = Certification(n=4000, attack={"examples": 12, "eps": (0.1, 0.3), "steps": 6, "draws": 200})
    x, y = images(12), (images(12).flatten(1) @ w < w.sum() / 2).long()
    _, report = certificates(net, x, y, options)
    for each in report.attack:
        assert each.certified.accuracy <= each.attacked.accuracy
    with pytest.raises(ContradictionError, match="is wrong") as error:
        certificates(net, x, y, options, lipschitz=lipschitz_bound(net, x) / 2)
    assert "bug" in str(error.value)


def test_a_contradiction_is_an_event_that_chance_does_not_cause():
    verdict = Verdict(3, 3, 990)
    assert contradiction(verdict, Attacked(0.5, 3, 600, 600), 1000, 4.0, 1.0) is None
    # Class 3 has p >= 0.95 with confidence 1 - 1e-9, so at least Φ(Φ⁻¹(0.95) - 1) = 0.74 at this distance.
    assert "only 600" in contradiction(verdict, Attacked(0.5, 3, 600, 600), 1000, 1.0, 0.4)
    assert "class 5 has 900" in contradiction(verdict, Attacked(0.5, 5, 900, 50), 1000, 9.0, 0.6)
    assert contradiction(verdict, Attacked(0.7, 5, 900, 50), 1000, 9.0, 0.6) is None  # outside
    assert contradiction(verdict, Attacked(0.5, 5, 520, 480), 1000, 9.0, 0.6) is None  # may be chance


@pytest.mark.montecarlo
@pytest.mark.parametrize("input_noise", [None, 0.5])
def test_the_gradient_that_the_attack_follows(input_noise):
    """∂P(error)/∂x of a linear classifier in closed form; z bound 5."""
    net, w = two_classes(0.7 if input_noise is None else 1e-4)
    x = images(1)
    smoothing = Smoothing.of(net, input_noise, 1, images(2))
    draws = 400_000
    found = smoothing.gradient(x, torch.tensor([0]), zero_one, [Key(0, role=Role.CERTIFICATE)], draws).flatten()
    sigma = input_noise * w.norm().item() if input_noise else 0.7 / 2**0.5  # of the noise on w·x
    margin = ((x.flatten() - 0.5) @ w).item()
    exact = -norm.pdf(margin / sigma) / sigma * w
    error = (w.abs() / 0.7 if input_noise is None else torch.ones(12) / input_noise) / draws**0.5
    assert ((found - exact).abs() <= 5 * 2**0.5 * error + 1e-4).all()


# ---------------------------------------------------------------- several passes of a draw


@pytest.mark.montecarlo
@pytest.mark.parametrize("input_noise", [None, 0.5])
@pytest.mark.parametrize("passes", [1, 4])
def test_the_passes_of_a_draw_share_its_noise_and_average_their_own(input_noise, passes):
    """The probability of a class in closed form; z bound 5. The own noise has the variance σ²/m after m passes."""
    net, w = two_classes(1.5)
    if input_noise is None:  # the first site smooths, and a second one has the noise that the passes average
        last = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            last.weight.copy_(torch.eye(2))
        net = prepared(nn.Sequential(*net.model, last), Gaussian(1.5))
    x, draws = images(1), 200_000
    smoothing = Smoothing.of(net, input_noise, passes, images(2))
    frequency = smoothing.counts(x[0], Key(0, role=Role.CERTIFICATE), draws)[0].item() / draws
    margin = 2 * ((x.flatten() - 0.5) @ w).item()
    smoothed = 2 * 1.5**2 if input_noise is None else (2 * input_noise * w.norm().item()) ** 2
    p = norm.cdf(margin / math.sqrt(smoothed + 2 * 1.5**2 / passes))
    assert abs(frequency - p) <= 5 * math.sqrt(p * (1 - p) / draws)


def test_passes_that_would_all_be_the_same_are_refused():
    net, _ = two_classes()
    noiseless = GLR(net.model, None, estimator="pathwise").eval()
    for each, input_noise, reason in ((net, None, "'1', which smooths"), (noiseless, 0.5, "no noise of its own")):
        with pytest.raises(ConfigError, match=f"passes: 4 is not allowed: .*{reason}"):
            Smoothing.of(each, input_noise, 4, images(2))


class Inside(nn.Module):
    """A block whose site is not its last module."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x).sigmoid()


def test_passes_from_the_logits_that_they_share_are_those_from_the_input():
    torch.manual_seed(0)
    first, last = nn.Linear(12, 6), nn.Linear(6, 3)
    key, found = Key(0, role=Role.CERTIFICATE), []
    for each in ((first, nn.Sigmoid()), (Inside(first),)):  # inside a block, its logits are computed in every pass
        net = prepared(nn.Sequential(nn.Flatten(), *each, last))
        found.append(Smoothing.of(net, 0.3, 3, images(2)).counts(images(1)[0], key, 500))
    assert torch.equal(*found)
    assert found[0].max() < 500


def test_the_passes_of_a_network_that_ends_at_its_first_site_select_its_output_once():
    net, _ = two_classes()
    turned = GLR(net.model, Gaussian(1e-6), output=lambda scores: -scores).eval()
    x, key = images(1)[0], Key(0, role=Role.CERTIFICATE)
    counts = [Smoothing.of(turned, 0.3, passes, images(2)).counts(x, key, 500) for passes in (1, 2)]
    assert torch.equal(*counts)


@pytest.mark.parametrize("input_noise", [None, 0.5])
def test_no_stream_is_used_twice(input_noise, monkeypatch):
    keys = []
    monkeypatch.setattr(smoothing, "generator", lambda key, device="cpu": keys.append(key) or generator(key, device))
    monkeypatch.setattr(smoothing, "_MOST", 50)
    torch.manual_seed(0)
    net = prepared(nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Sigmoid(), nn.Linear(6, 3)))
    options = Certification(n=200, input_noise=input_noise, passes=3, attack={"examples": 2, "steps": 2, "draws": 80})
    certificates(net, images(2), torch.tensor([0, 1]), options)
    assert len(keys) == len(set(keys)) > 20


# ---------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_run_is_certified(run, capsys):
    folder = run("threshold")
    assert cli.main(["certify", str(folder), *SMALL, "--actors", "0"]) == 0
    printed = capsys.readouterr().out
    files = CertificateFiles(folder, "l2-test")
    assert f"results  {files.page}" in printed
    assert "# Certified robustness of threshold (l2-test)" in printed
    assert {path.suffix for path in files.all()} == {".json", ".md", ".png", ".pdf"}
    assert not [path for path in files.folder.iterdir() if path.name.startswith(".")]
    assert "![](l2-test.png)" in files.page.read_text()
    report = read_certificates(folder, "l2-test")
    assert certificate_names(folder) == ["l2-test"]
    assert len(report.images) == report.clean.examples == 24
    assert report.clean.accuracy > 0.7
    rates = [each.rate.accuracy for each in report.radii]
    assert rates == sorted(rates, reverse=True)
    assert report.clean.accuracy >= rates[0]
    right = [image for image in report.images if image.predicted == image.label]
    assert report.average_radius == pytest.approx(sum(image.radius for image in right) / 24)
    assert all(each.attacked.accuracy >= each.certified.accuracy for each in report.attack)
    assert [each.attacked.examples for each in report.attack] == [8, 8]
    metrics = report.metrics()
    assert metrics["certified/l2/r_0.25"] == rates[0]
    assert {"certified/l2/clean", "certified/l2/average_radius", "certified/l2/attacked_r_0.4"} <= metrics.keys()
    # The same settings again replace the results, others do not.
    assert certify(folder, small(), actors=0) == report
    with pytest.raises(ConfigError, match=r"'n' is 600, not 700.*name=NAME"):
        certify(folder, small("n=700"), actors=0)


@pytest.mark.slow
def test_noise_on_the_input_certifies_a_network_without_noise(run):
    report = certify(run("bp"), small("input_noise=0.2", "name=input"), actors=0)
    assert report.lipschitz == 5
    assert report.scales == {}
    assert report.metrics()["certified/input/clean"] > 0.7
    assert max(image.radius for image in report.images) == pytest.approx(
        0.2 * norm.ppf(0.001 ** (1 / 600)), rel=1e-6
    )  # 600 of 600 draws


@pytest.mark.slow
def test_a_certificate_does_not_depend_on_threads_blocks_or_the_other_images(run, monkeypatch):
    folder = run("threshold")
    report = certify(folder, small(), actors=0)
    monkeypatch.setattr(workers, "Inline", lambda threads: Inline(3))
    assert certify(folder, small(), actors=0) == report
    fewer = certify(folder, small("block=7", "examples=16", "name=fewer"), actors=0)
    assert fewer.images == report.images[:16]
    other = certify(folder, small("seed=1", "name=other"), actors=0)
    assert other.images != report.images


@pytest.mark.long
@pytest.mark.ray
def test_actors_give_the_same_certificates(run, local_ray):
    folder = run("threshold")
    report = certify(folder, small(), actors=0)
    (folder / "certificates" / "l2-test.json").unlink()
    assert certify(folder, small(), actors=2) == report


@pytest.mark.slow
def test_a_stopped_certification_continues(run, monkeypatch, capsys):
    folder, settings = run("threshold"), small()
    expected = certify(folder, settings, actors=0)
    (folder / "certificates" / "l2-test.json").unlink()
    monkeypatch.setattr(workers, "Inline", lambda threads: Inline(1))
    done = []

    def stopped(certified, block):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(block)
        return certify_block(certified, block)

    monkeypatch.setattr(methods.Smoothed, "block", staticmethod(stopped))
    assert cli.main(["certify", str(folder), *SMALL]) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert done == [0, 1, 2]
    journal = CertificateFiles(folder, "l2-test").journal
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:3], lines[3][:-9]]))  # the last block is damaged
    counted = []
    monkeypatch.setattr(
        methods.Smoothed, "block", staticmethod(lambda *given: counted.append(given[1]) or certify_block(*given))
    )
    assert certify(folder, settings, actors=0) == expected
    assert counted == [2, 3, 4]


@pytest.mark.slow
def test_a_wrong_norm_fails_the_run(run, monkeypatch, capsys):
    folder = run("threshold")
    monkeypatch.setattr(methods, "lipschitz_bound", lambda net, x: first_segment.lipschitz_bound(net, x) / 20)
    assert cli.main(["certify", str(folder), *SMALL, "attack.eps=[0.4]", "--actors", "0"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the certificate of test image" in error
    assert "this is a bug" in error
    assert certificate_names(folder) == []


WRONG = {
    "alpha": (["alpha=0.7"], "alpha: 0.7 is not allowed"),
    "a radius twice": (["radii=[1, 1]"], "radii: [1.0, 1.0] is not allowed"),
    "an unknown key": (["sigma=1"], "sigma: unknown key"),
    "negative noise": (["input_noise=-1"], "input_noise: -1 is not allowed"),
    "no draws": (["n=0"], "n: 0 is not allowed"),
    "a device beside actors": (["--device", "cuda:0", "--actors", "2"], "--device: 'cuda:0' is not allowed"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_an_error_is_one_line(run, capsys, words, message):
    folder = run("threshold")
    assert cli.main(["certify", str(folder), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (folder / "certificates").exists()


@pytest.mark.slow
def test_a_network_without_noise_needs_noise_on_the_input(run, capsys):
    assert cli.main(["certify", str(run("bp")), *SMALL]) == 2
    assert "input_noise=0.25" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_that_normalises_its_input_is_certified_in_pixel_space(run, tmp_path):
    """Half the deviation is the slope twice as large."""
    slopes = []
    for std in (1.0, 0.5):
        config = load_config(run("threshold") / "config.yaml", [f"model.normalize={{mean: 0.3, std: {std}}}"])
        config = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 1})})
        train(config, tmp_path / f"std-{std}")
        report = certify(tmp_path / f"std-{std}", small("examples=5", "n=100", "attack.examples=0"), actors=0)
        weight = load_run(tmp_path / f"std-{std}").net.network.sites[0].module.weight.detach().double()
        assert report.lipschitz == pytest.approx(torch.linalg.matrix_norm(weight, 2).item() / 0.5 / std, rel=1e-6)
        slopes.append(report.lipschitz)
    assert slopes[1] > 1.5 * slopes[0]


@pytest.mark.slow
def test_a_network_trained_with_noise_on_the_input_is_smoothed_by_it(run, tmp_path):
    config = load_config(run("bp") / "config.yaml", ["noise.input.scale=0.3", "training.epochs=1"])
    train(config, tmp_path / "run")
    report = certify(tmp_path / "run", small("examples=5", "n=100", "attack.examples=0"), actors=0)
    assert report.settings.input_noise == 0.3
    assert report.lipschitz == pytest.approx(1 / 0.3)


def test_a_table_is_not_certified(tmp_path, monkeypatch, capsys):
    rows = "".join(f"{i % 7},{i % 5},{'ab'[i % 2]}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("x,y,kind\n" + rows)
    values = {"data": {"name": "table", "path": str(tmp_path / "t.csv"), "target": "kind"}, "training": {"epochs": 1}}
    train(build(Config, values), tmp_path / "run")
    capsys.readouterr()
    assert cli.main(["certify", str(tmp_path / "run")]) == 2
    assert "certificates are for images with one class each" in capsys.readouterr().err


def test_damaged_results_are_an_error(run):
    folder = run("threshold")
    certify(folder, small("examples=5", "attack.examples=0"), actors=0)
    path = CertificateFiles(folder, "l2-test").report
    path.write_text(json.dumps({**json.loads(path.read_text()), "epoch": "x"}))
    with pytest.raises(ConfigError, match=r"is damaged.*\(epoch\)"):
        read_certificates(folder, "l2-test")
    with pytest.raises(ConfigError, match="certify the run first"):
        read_certificates(folder, "other-test")
