"""The figures that the project promises on real images (skipped where GLR_DATA holds none)."""

import pytest

from glr_dist import config
from glr_dist.config import Config
from glr_dist.diagnostics import diagnose
from glr_dist.training.train import train


@pytest.mark.long
def test_first_layer_cosine_jumps_once_a_frame_spans_it(glr_data, tmp_path):
    """784-100-50-30-10, sigmoid, σ = 0.3: ≥ 0.87 at K = 100, half a frame of pairs, and ≥ 0.99 at a whole one."""
    settings = config.build(
        Config,
        {
            "data": {"name": "mnist", "root": str(glr_data), "download": False},
            "model": {"hidden": [100, 50, 30], "init": "paper"},
            "noise": {"scale": 0.3},
            "estimator": {"sampler": "orthogonal"},
            "diagnose": {"copies": [100, 200], "draws": 10, "reference_passes": 2000},
        },
    )
    report = diagnose(settings, tmp_path / "out")
    assert report.reference == "pathwise"
    first = {row.copies: row for row in report.qualities if row.site == "1"}
    assert first[100].cosine >= 0.87
    assert first[200].cosine >= 0.99
    assert report.reference_error["1"] < 0.01
    for row in report.qualities:
        assert abs(row.bias) <= 4.5 * row.bias_error


@pytest.mark.long
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_an_epoch_without_a_derivative_anywhere_learns_and_repeats_bit_for_bit(name, glr_data, tmp_path):
    """Threshold units and 0-1 loss; one and two threads give the same parameters."""
    digests = []
    for threads in (1, 2):
        settings = config.build(
            Config,
            {
                "data": {"name": name, "root": str(glr_data), "download": False},
                "model": {"hidden": [50], "activation": "threshold"},
                "noise": {"scale": 1.0},
                "estimator": {"copies": 100},
                "training": {"epochs": 1, "loss": "zero_one", "optimizer": {"name": "Adam", "lr": 0.01}},
                "execution": {"threads": threads},
            },
        )
        summary = train(settings, tmp_path / f"threads-{threads}")
        digests.append(summary["params_sha256"])
        assert summary["test_accuracy"] > (0.85 if name == "mnist" else 0.60)
    assert digests[0] == digests[1]
