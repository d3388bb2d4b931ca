"""L∞ certificates: bounds that hold for the network as it computes, exact programs, contradictions, and runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from glr_dist import GLR, cli
from glr_dist.data import Split
from glr_dist.errors import ConfigError, SiteError
from glr_dist.execution.inline import Inline
from glr_dist.nn.activations import Heaviside, Sign, Staircase
from glr_dist.nn.dropout import Dropout
from glr_dist.nn.normalize import Normalize
from glr_dist.robustness import workers
from glr_dist.robustness.certificates.certify import certify
from glr_dist.robustness.certificates.files import CertificateFiles, certificate_names, read_certificates
from glr_dist.robustness.certificates.linf import certify_block as module
from glr_dist.robustness.certificates.linf.boxes import Box, after
from glr_dist.robustness.certificates.linf.certify_block import Decision, LinfCertified, LinfVerdict
from glr_dist.robustness.certificates.linf.report import linf_report_of
from glr_dist.robustness.certificates.linf.settings import LinfCertification
from glr_dist.robustness.certificates.linf.threshold_program import ThresholdNetwork, least_margin
from glr_dist.robustness.certificates.report import ContradictionError
from glr_dist.robustness.certificates.settings import load_certification

SMALL = ("norm=linf", "examples=24", "block=5", "steps=5", "adaptive={spreads: [0.2], copies: 16}")
UNIT = 2.0**-24


def small(*overrides):
    return load_certification([*SMALL, *overrides])


# ---------------------------------------------------------------- boxes

MODULES = {
    "linear": lambda: nn.Linear(36, 7),
    "linear without bias": lambda: nn.Linear(36, 7, bias=False),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 3, 3, padding=1, stride=2)),
    "pooling": lambda: nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.AvgPool2d(2), nn.Flatten()),
    "normalisation": lambda: Normalize((36,), list(np.linspace(-1, 1, 36)), 0.3),
    "dropout": lambda: Dropout(0.5),
    **{
        type(act).__name__: (lambda act=act: nn.Sequential(nn.Linear(36, 9), act))
        for act in (nn.ReLU(), nn.Sigmoid(), nn.Tanh(), Heaviside(), Sign(), Staircase(4))
    },
    "a network": lambda: nn.Sequential(nn.Linear(36, 9), nn.Sigmoid(), nn.Linear(9, 9), Heaviside(), nn.Linear(9, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([0.0, 1e-6, 0.05, 1.0]), scale=st.sampled_from([0.1, 1, 100]))
@settings(max_examples=25, deadline=None)
def test_what_a_module_computes_lies_in_its_box(build, seed, size, scale):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().eval()
        low = scale * torch.randn(2, 36)
        high = low + size * torch.rand(2, 36)
        inside = [low + torch.rand(2, 36) * (high - low) for _ in range(8)]
        corners = [torch.where(torch.rand(2, 36) < 0.5, low, high) for _ in range(8)]
    box = Box.between(low, high, UNIT)
    for part in model.double() if isinstance(model, nn.Sequential) else [model.double()]:
        box = after(part, box)
    model.float()
    with torch.no_grad():
        for x in (low, high, *inside, *corners):
            found = model(x.clamp(low, high)).double()
            assert (found >= box.low).all()
            assert (found <= box.high).all()


def test_the_box_of_a_linear_layer_is_as_small_as_it_can_be():
    """A unit flips only if |z_j| <= ε ‖w_j‖₁."""
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 5).double(), torch.rand(1, 12, dtype=torch.float64)
    box = after(layer, Box.between(x - 0.1, x + 0.1, 2.0**-53))
    torch.testing.assert_close(box.radius[0], 0.1 * layer.weight.abs().sum(1), rtol=1e-9, atol=1e-9)


def test_a_module_without_bounds_is_refused_by_name():
    net = GLR(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), 1.0).eval()
    images = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), 255)
    with pytest.raises(SiteError, match="'2': bounds of a GELU are not known"):
        LinfCertified.of(net, images, LinfCertification())


# ---------------------------------------------------------------- programs


def tiny_network(seed):
    rng = np.random.default_rng(seed)
    return ThresholdNetwork(
        rng.normal(size=(5, 3)), rng.normal(size=5) / 2, rng.normal(size=(3, 5)), rng.normal(size=3)
    )


def by_enumeration(network, low, high, label, other):
    """The least margin over all sign patterns of the hidden units that some input has."""
    found = np.inf
    for pattern in itertools.product((0, 1), repeat=5):
        h = np.array(pattern)
        signs = np.where(h == 1, -1.0, 1.0)[:, None]
        feasible = linprog(
            np.zeros(3),
            signs * network.inner,
            -signs[:, 0] * network.inner_bias,
            bounds=list(zip(low, high, strict=True)),
        )
        if feasible.status == 0:
            found = min(found, (network.outer[label] - network.outer[other]) @ h)
    return found + network.outer_bias[label] - network.outer_bias[other]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_program_finds_the_least_margin(seed):
    network, size = tiny_network(seed), [0.05, 0.3, 1.0][seed % 3]
    x = np.random.default_rng(seed + 100).random(3)
    low, high = x - size, x + size
    rounding = {"hidden_rounding": np.full(5, 1e-9), "margin_rounding": 1e-9, "nodes": 1000}
    for other in (1, 2):
        exact = by_enumeration(network, low, high, 0, other)
        bound, _ = least_margin(network, low, high, 0, other, **rounding)
        assert bound <= exact
        if exact > 0:  # the intervals may prove it, without a search
            assert bound > 0
            continue
        assert bound >= exact - 1e-3
        _, at = least_margin(network, low, high, 0, other, **rounding, strict=True)
        h = network.inner @ at + network.inner_bias > 0
        margin = (network.outer[0] - network.outer[other]) @ h + network.outer_bias[0] - network.outer_bias[other]
        assert (at >= low - 1e-9).all()
        assert (at <= high + 1e-9).all()
        assert margin == pytest.approx(exact, abs=1e-9)  # no pattern here hangs on a hair


def test_a_search_that_is_cut_off_still_gives_a_bound():
    network, low, high = tiny_network(2), np.full(3, -1.0), np.full(3, 2.0)
    rounding = {"hidden_rounding": np.zeros(5), "margin_rounding": 0.0}
    exact = by_enumeration(network, low, high, 0, 1)
    assert least_margin(network, low, high, 0, 1, **rounding, nodes=1)[0] <= exact


# ---------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_threshold_network_is_certified_and_nothing_stays_open(run, capsys):
    folder = run("threshold")
    assert cli.main(["certify", str(folder), *SMALL, "eps=[0.05, 0.02]", "--actors", "0"]) == 0
    printed = capsys.readouterr().out
    assert "| L∞ radius ε | certified by intervals |" in printed
    files = CertificateFiles(folder, "linf-test")
    assert f"results  {files.page}" in printed
    assert {path.suffix for path in files.all()} == {".json", ".md", ".png", ".pdf"}
    report = read_certificates(folder, "linf-test")
    assert [each.eps for each in report.radii] == [0.02, 0.05]
    for each in report.radii:
        assert each.by_intervals.accuracy <= each.certified.accuracy
        assert each.certified.accuracy == each.attacked.accuracy < report.clean.accuracy
    assert report.radii[1].by_intervals.accuracy < report.radii[1].certified.accuracy  # programs prove more
    assert any(breach == "program" for _, _, decisions in report.images for _, breach in decisions)
    metrics = report.metrics()
    assert metrics["certified/linf/eps_0.05"] == report.radii[1].certified.accuracy
    intervals = certify(folder, small("nodes=0", "name=intervals"), actors=0)
    assert [e.certified for e in intervals.radii] == [e.by_intervals for e in report.radii]


def test_a_differentiable_network_is_certified_by_intervals_and_attacked_by_its_gradient(run):
    report = certify(run("bp"), small("eps=[0.005, 0.2]"), actors=0)
    near, far = report.radii
    assert 0 < near.certified.accuracy == near.by_intervals.accuracy <= near.attacked.accuracy
    assert far.certified.accuracy <= far.attacked.accuracy < 0.5


@pytest.mark.slow
def test_the_certificates_do_not_depend_on_threads_and_continue_after_a_stop(run, monkeypatch):
    folder = run("threshold")
    report = certify(folder, small(), actors=0)
    monkeypatch.setattr(workers, "Inline", lambda threads: Inline(3))
    assert certify(folder, small(), actors=0) == report
    journal = CertificateFiles(folder, "linf-test").journal
    monkeypatch.setattr("glr_dist.robustness.certificates.certify._write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        certify(folder, small(), actors=0)
    assert len(journal.read_text().splitlines()) == 6  # five blocks, which are not computed again
    monkeypatch.undo()
    monkeypatch.setattr(module, "_decisions", lambda *_: 1 / 0)
    assert certify(folder, small(), actors=0) == report


def test_a_wrong_bound_fails_the_run(run, monkeypatch, capsys):
    monkeypatch.setattr(module, "_margins", lambda certified, low, high, y: torch.ones(len(y), 10))
    folder = run("threshold")
    assert cli.main(["certify", str(folder), *SMALL, "eps=0.1", "--actors", "0"]) == 2
    assert "proven within ε = 0.1 and changed by an attack; this is a bug" in capsys.readouterr().err
    assert certificate_names(folder) == []


def test_what_is_proven_and_broken_is_a_contradiction():
    config = {"run": "r", "config": {}, "epoch": 1, "params_sha256": ""}
    options = LinfCertification(eps=(0.1,))
    fine = [LinfVerdict(1, 1, (Decision("interval", ""),)), LinfVerdict(1, 2), LinfVerdict(0, 0, (Decision(),))]
    report = linf_report_of(options, fine, **config)
    (radius,) = report.radii
    assert (report.clean.accuracy, radius.certified.accuracy, radius.attacked.accuracy) == (2 / 3, 1 / 3, 2 / 3)
    with pytest.raises(ContradictionError, match="test image 1 is wrong"):
        linf_report_of(options, [fine[0], LinfVerdict(1, 1, (Decision("program", "attack"),))], **config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["norm=l1"], "norm: 'l1' is not allowed: 'l2' or 'linf'"),
        (["norm=linf", "eps=[0.1, 0.1]"], "eps: [0.1, 0.1] is not allowed"),
        (["norm=linf", "alfa=0.1"], "alfa: unknown key"),
        (["norm=linf", "alpha=0.1"], "alpha: has no effect on certificates in the norm linf; leave it out"),
        (["attack.steps=5", "norm=linf"], "attack: has no effect on certificates in the norm linf"),
        (["eps=0.1"], "eps: has no effect on certificates in the norm l2"),
    ],
)
def test_a_wrong_setting_is_one_line(words, message):
    with pytest.raises(ConfigError) as error:
        load_certification(words)
    assert message in str(error.value).replace("did you mean", "")
