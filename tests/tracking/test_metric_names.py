"""Names of metrics and parameters, and uploads of which an item is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mlflow.exceptions import RestException
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name, _validate_param_name

from glr_dist.tracking.metric_names import metrics_of, valid_names
from glr_dist.tracking.server import in_batches


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
    assert valid_names(["noise.scale.conv*"]) == {"noise.scale.conv*": "noise.scale.conv_"}


def test_names_that_mlflow_refuses_are_replaced_by_different_ones():
    names = [
        "noise.scale.?",
        "noise.scale.*",
        "noise.scale._",
        "a//b/",
        "/",
        "../x",
        "a/./b",
        "ok: a-b.c",
        "é",
        "x" * 300,
        "x" * 301,
    ]
    valid = valid_names(names)
    assert len(set(valid.values())) == len(names)
    assert valid["noise.scale.?"] == "noise.scale._"
    assert valid["noise.scale.*"] == "noise.scale._ 2"
    assert valid["ok: a-b.c"] == "ok: a-b.c"
    for name in valid.values():
        _validate_metric_name(name)
        _validate_param_name(name)
        assert len(name) <= MAX_ENTITY_KEY_LENGTH


def refusing(bad: set[str], code: str) -> tuple[Callable[[list[str]], None], list[str]]:
    """Returns an upload that refuses batches with a bad item, and the list of what it accepts."""
    accepted: list[str] = []

    def upload(batch: list[str]) -> None:
        if bad & set(batch):
            raise RestException({"error_code": code, "message": f"no {min(bad & set(batch))}"})
        accepted.extend(batch)

    return upload, accepted


@pytest.mark.parametrize("bad", [{"a"}, {"c"}, {"e"}, {"b", "d"}, set("abcde")])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_refused_item_does_not_affect_the_others(bad, size):
    upload, accepted = refusing(bad, "INVALID_PARAMETER_VALUE")
    with pytest.raises(RestException, match=f"no {min(bad)}"):
        in_batches("abcde", size, upload)
    assert accepted == sorted(set("abcde") - bad)


def test_a_server_that_cannot_be_reached_is_not_asked_for_each_item():
    upload, accepted = refusing({"a"}, "TEMPORARILY_UNAVAILABLE")
    with pytest.raises(RestException):
        in_batches("abcde", 2, upload)
    assert accepted == []
