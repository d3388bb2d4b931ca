"""No server in the environment, and a longer patience."""

from __future__ import annotations

import pytest

from glr_dist.tracking import follower


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that what MLflow itself sets does not outlive the test
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # These tests check what is uploaded, on a machine that may be busy.
    monkeypatch.setattr(follower, "_PATIENCE", 60.0)
