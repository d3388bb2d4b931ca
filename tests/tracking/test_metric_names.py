"""Names of metrics, and URIs without their credentials."""

from __future__ import annotations

import pytest

from glr_dist.config import Config, build, dump_config, load_config
from glr_dist.errors import ConfigError, UserError, without_credentials
from glr_dist.tracking.metric_names import metrics_of, valid_name


def test_every_number_of_a_record_has_a_name():
    record = {
        "epoch": 3,
        "time": 1.5,
        "train_loss": 0.25,
        "validation_accuracy": 1,
        "gradient_norm/block.1": 2.0,
        "gradient_norm/": 3.0,
        "actor_busy_share": [0.5, 0.75],
        "estimator": "joint",
    }
    assert metrics_of(record) == {
        "train/loss": 0.25,
        "validation/accuracy": 1.0,
        "gradient_norm/block.1": 2.0,
        "gradient_norm": 3.0,  # of a network that is one site
        "actor_busy_share/0": 0.5,
        "actor_busy_share/1": 0.75,
    }
    assert valid_name("noise.scale.conv*") == "noise.scale.conv_"


@pytest.mark.parametrize(
    ("uri", "clean"),
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("https://token@host", "https://host"),
        ("postgresql://me:sec/r@et@host/db", "postgresql://host/db"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("no 'http://me:secret@host', and http://a:b@other/c", "no 'http://host', and http://other/c"),
    ],
)
def test_credentials_are_left_out(uri, clean):
    assert without_credentials(uri) == clean
    assert str(UserError(uri)) == clean


def test_a_config_keeps_credentials_in_memory_only(tmp_path):
    uri = "https://me:secret@host:5000"
    config = build(Config, {"tracking": {"kind": "mlflow", "uri": uri}})
    assert config.tracking.uri == uri
    for shown in (dump_config(config), repr(config), config.model_dump_json()):
        assert "secret" not in shown
    (tmp_path / "kept.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "kept.yaml").tracking.uri == "https://host:5000"


@pytest.mark.parametrize(
    "values", ["https://me:secret@h", {"uri": ["https://me:secret@h"]}, {"url": "https://me:secret@h"}]
)
def test_an_error_about_a_uri_shows_no_credentials(values):
    with pytest.raises(ConfigError) as caught:
        build(Config, {"tracking": values})
    assert "secret" not in str(caught.value)
